import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mpo.config import ScoreStage
from mpo.errors import StageInterrupted
from mpo.hold_out import assign_folds
from mpo.policies import load_reward_model
from mpo.records import PreferencePair, write_rows
from mpo.reward_model.score import score_pairs, score_responses, set_reward_offset
from mpo.tokenization import encode_pairs, load_tokenizer
from tests.mpo.tiny import RecordingReporter, task_of, word_pairs, write_policy, write_reward_model

CONFIG = ScoreStage(folds=2, max_prompt_tokens=12, max_response_tokens=6)


def grouped_pairs(count: int) -> list[PreferencePair]:
    return [replace(pair, group=row // 2) for row, pair in enumerate(word_pairs(count))]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path | list[Path]]:
    base = write_policy(tmp_path / "base")
    models = [write_reward_model(tmp_path / f"fold_{seed}", base, seed) for seed in (1, 2)]
    write_rows(tmp_path / "pairs.parquet", grouped_pairs(70))
    return {"reward_models": models, "data": tmp_path / "pairs.parquet"}


def test_a_batch_scores_as_its_rows_do_one_by_one_whatever_id_a_response_ends_with(tmp_path: Path) -> None:
    model = load_reward_model(write_reward_model(tmp_path / "rm", write_policy(tmp_path / "base"))).eval()
    prompts, responses = [[1, 5], [1, 5, 9, 8, 7], [1, 6, 7]], [[9, 2], [4], [8, 0, 0]]
    together = score_responses(model, prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        hidden = model.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state
        alone = model.score(hidden[0, -1]).item()
        assert together[row].item() == pytest.approx(alone, abs=1e-5)
    assert score_responses(model, prompts, responses, batch_size=1) == pytest.approx(together, abs=1e-5)
    assert together.std() > 0.05


def test_the_offset_is_subtracted(tmp_path: Path) -> None:
    model = load_reward_model(write_reward_model(tmp_path / "rm", write_policy(tmp_path / "base")))
    raw = score_responses(model, [[1, 5]], [[9, 2]])
    set_reward_offset(model, 0.75)
    assert score_responses(model, [[1, 5]], [[9, 2]]).item() == pytest.approx(raw.item() - 0.75, abs=1e-6)


def test_nothing_to_score_gives_no_scores(tmp_path: Path) -> None:
    model = load_reward_model(write_reward_model(tmp_path / "rm", write_policy(tmp_path / "base")))
    assert score_responses(model, [], []).shape == (0,)


def test_each_pair_is_scored_by_its_own_folds_model_in_the_datas_order(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    score_pairs(task_of(CONFIG, tmp_path / "score", inputs), reporter)
    table = pq.read_table(tmp_path / "score" / "scores.parquet").to_pydict()
    pairs = grouped_pairs(70)
    assert table["id"] == [pair.id for pair in pairs]
    assert table["fold"] == assign_folds([row // 2 for row in range(70)], 2)
    encoded, _ = encode_pairs(
        pairs, load_tokenizer(tmp_path / "base"), max_prompt_tokens=12, max_response_tokens=6
    )
    models = [load_reward_model(tmp_path / f"fold_{fold}") for fold in (1, 2)]
    for row in (0, 1, 2, 33, 69):
        model, pair = models[table["fold"][row] - 1], encoded[row]
        for side, ids in (("reward_chosen", pair.chosen_ids), ("reward_rejected", pair.rejected_ids)):
            alone = score_responses(model, [pair.prompt_ids], [ids]).item()
            assert table[side][row] == pytest.approx(alone, abs=1e-5)
        assert table["gap"][row] == table["reward_chosen"][row] - table["reward_rejected"][row]
        assert table["tokens"][row] == len(pair.prompt_ids + pair.chosen_ids + pair.rejected_ids)
    assert reporter.steps[-1][:2] == (70, 70)


def test_the_summary_counts_what_the_scores_say(inputs: dict[str, Path | list[Path]], tmp_path: Path) -> None:
    reporter = RecordingReporter()
    score_pairs(task_of(CONFIG, tmp_path / "score", inputs), reporter)
    gaps = pq.read_table(tmp_path / "score" / "scores.parquet").to_pydict()["gap"]
    summary = json.loads((tmp_path / "score" / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / 70)
    assert summary["gap_mean"] == pytest.approx(sum(gaps) / 70)
    assert sum(fold["pairs"] for fold in summary["folds"]) == summary["pairs"] == 70
    assert summary["scored_by"] == "cross_fit"
    low, high = summary["accuracy_ci95"]
    assert low < summary["accuracy"] < high
    # Heads drawn at random know nothing of the labels.
    assert summary["weak"] is True
    assert any("no better than chance" in warning for warning in reporter.warnings)


def test_resumed_scores_equal_uninterrupted_ones_bit_for_bit(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    score_pairs(task_of(CONFIG, tmp_path / "whole", inputs), RecordingReporter())
    for stop_after in (1, 4):  # within the first fold; within the second
        first = RecordingReporter(kept=tmp_path / f"kept{stop_after}", stop_after=stop_after)
        with pytest.raises(StageInterrupted):
            score_pairs(task_of(CONFIG, tmp_path / f"first{stop_after}", inputs), first)
        rest = RecordingReporter()
        resumed = task_of(
            CONFIG, tmp_path / f"rest{stop_after}", inputs, resume=tmp_path / f"kept{stop_after}"
        )
        score_pairs(resumed, rest)
        assert len(first.steps) + len(rest.steps) == 6
        tables = [pq.read_table(tmp_path / r / "scores.parquet") for r in ("whole", f"rest{stop_after}")]
        assert tables[0].equals(tables[1])
