import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mpo.config import RewardModelStage, ScoreStage, SplitStage
from mpo.errors import StageInterrupted, UnusableModel
from mpo.gap_index import fit_temperature
from mpo.hold_out import assign_folds
from mpo.policies import load_reward_model
from mpo.records import PreferencePair, write_rows
from mpo.reporter import StageTask
from mpo.reward_model.score import score_encoded, score_pairs, score_responses, set_reward_offset
from mpo.reward_model.train import pairs_at, training_rows
from mpo.split import split_by_gap
from mpo.tokenization import EncodedPair, encode_pairs, load_tokenizer
from tests.mpo.tiny import RecordingReporter, task_of, word_pairs, write_policy, write_reward_model

CONFIG = ScoreStage(folds=2, max_prompt_tokens=12, max_response_tokens=6)
REWARDS = ("reward_chosen", "reward_rejected")
BOUNDARIES = {"cross_fit": 5, "held_out": 2, "in_sample": 4}
"""The last batch after which each scheme can stop, on 70 pairs."""


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pa.Table]]:
    """Models and pairs, and by scheme the scores of a stage that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    base = write_policy(folder / "base")
    for fold in (1, 2):
        write_reward_model(folder / f"fold_{fold}", base, fold)
    write_rows(folder / "pairs.parquet", grouped_pairs(70))
    return folder, {scheme: scored(folder, folder / scheme, scheme) for scheme in BOUNDARIES}


def task_for(
    folder: Path, output: Path, scheme: str, resume: Path | None = None, **options: str
) -> StageTask:
    models = [folder / "fold_1", folder / "fold_2"][: 2 if scheme == "cross_fit" else 1]
    config = CONFIG.model_copy(update={"scheme": scheme} | options)
    inputs = {"reward_models": models, "data": folder / "pairs.parquet"}
    return task_of(config, output, inputs, resume=resume)


def scored(folder: Path, output: Path, scheme: str, **options: str) -> pa.Table:
    score_pairs(task_for(folder, output, scheme, **options), RecordingReporter())
    return pq.read_table(output / "scores.parquet")


@pytest.mark.parametrize(
    ("scheme", "boundary"), [(scheme, k) for scheme, last in BOUNDARIES.items() for k in range(1, last + 1)]
)
def test_resumed_scores_equal_uninterrupted_ones_bit_for_bit_at_every_boundary(
    whole: tuple[Path, dict[str, pa.Table]], tmp_path: Path, scheme: str, boundary: int
) -> None:
    folder, uninterrupted = whole
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=boundary)
    with pytest.raises(StageInterrupted):
        score_pairs(task_for(folder, tmp_path / "first", scheme), first)
    rest = RecordingReporter()
    score_pairs(task_for(folder, tmp_path / "rest", scheme, resume=tmp_path / "kept"), rest)
    assert len(rest.steps) == BOUNDARIES[scheme] + 1 - boundary
    assert pq.read_table(tmp_path / "rest" / "scores.parquet").equals(uninterrupted[scheme])
    summaries = [f / "summary.json" for f in (folder / scheme, tmp_path / "rest")]
    assert summaries[0].read_bytes() == summaries[1].read_bytes()


def test_held_out_scores_half_of_the_prompts_and_leaves_the_rest_out(
    whole: tuple[Path, dict[str, pa.Table]],
) -> None:
    folder, tables = whole
    table = tables["held_out"]
    halves = assign_folds([row // 2 for row in range(70)], 2)
    assert table["id"].to_pylist() == [str(row) for row, half in enumerate(halves) if half == 1]
    assert table["fold"].null_count == len(table) == 36
    by_id = dict(
        zip(tables["in_sample"]["id"].to_pylist(), tables["in_sample"]["gap"].to_pylist(), strict=True)
    )
    expected = [by_id[id_] for id_ in table["id"].to_pylist()]  # the same model, in other batches
    assert table["gap"].to_pylist() == pytest.approx(expected, abs=1e-5)
    summary = json.loads((folder / "held_out" / "summary.json").read_text())
    assert (summary["scored_by"], summary["pairs"], summary["unscored"]) == ("held_out", 36, 34)
    assert [(fold["fold"], fold["pairs"]) for fold in summary["folds"]] == [(None, 36)]
    data = folder / "pairs.parquet"
    seen = list(pairs_at(data, training_rows(data, RewardModelStage(fold=1, folds=2))))
    assert {pair.id for pair in seen}.isdisjoint(table["id"].to_pylist())


def test_the_split_parts_what_half_of_the_prompts_was_scored(
    whole: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    folder, _ = whole
    scores = folder / "held_out" / "scores.parquet"
    split_by_gap(
        task_of(SplitStage(), tmp_path / "split", {"scores": scores, "data": folder / "pairs.parquet"}),
        RecordingReporter(),
    )
    summary = json.loads((tmp_path / "split" / "summary.json").read_text())
    assert (summary["pairs"], summary["unscored"]) == (36, 34)
    easy = pq.read_table(tmp_path / "split" / "easy.parquet")
    assert easy["fold"].null_count == len(easy) == summary["easy"]


def test_in_sample_scores_all_by_one_model_and_warns(
    whole: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    folder, tables = whole
    assert tables["in_sample"]["fold"].null_count == len(tables["in_sample"]) == 70
    reporter = RecordingReporter()
    score_pairs(task_for(folder, tmp_path / "score", "in_sample"), reporter)
    assert any("takes them for easy" in warning for warning in reporter.warnings)
    assert json.loads((tmp_path / "score" / "summary.json").read_text())["scored_by"] == "in_sample"
    quiet = RecordingReporter()
    score_pairs(task_for(folder, tmp_path / "other", "held_out"), quiet)
    assert not any("takes them for easy" in warning for warning in quiet.warnings)


@pytest.mark.parametrize("scheme", BOUNDARIES)
def test_calibration_divides_each_folds_rewards_by_its_temperature(
    whole: tuple[Path, dict[str, pa.Table]], tmp_path: Path, scheme: str
) -> None:
    folder, tables = whole
    plain, divided = tables[scheme], scored(folder, tmp_path / "score", scheme, calibration="temperature")
    folds = plain["fold"].to_pylist()
    gaps = {fold: [] for fold in dict.fromkeys(folds)}
    for fold, gap in zip(folds, plain["gap"].to_pylist(), strict=True):
        gaps[fold].append(gap)
    temperatures = {fold: fit_temperature(np.array(its)) for fold, its in gaps.items()}
    summary = json.loads((tmp_path / "score" / "summary.json").read_text())
    assert {fold["fold"]: fold["temperature"] for fold in summary["folds"]} == pytest.approx(temperatures)
    assert all(abs(temperature - 1) > 0.01 for temperature in temperatures.values())
    for name in ("reward_chosen", "reward_rejected"):
        expected = [r / temperatures[f] for r, f in zip(plain[name].to_pylist(), folds, strict=True)]
        assert divided[name].to_pylist() == pytest.approx(expected)
    differences = [c - r for c, r in zip(*(divided[n].to_pylist() for n in REWARDS), strict=True)]
    assert divided["gap"].to_pylist() == differences
    assert summary["gap_mean"] == pytest.approx(sum(differences) / len(differences))


def test_pairs_without_a_group_are_scored_by_the_fold_that_left_their_prompts_out(
    whole: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    pairs = [replace(pair, prompt=f"{row // 2}: ") for row, pair in enumerate(word_pairs(12))]
    write_rows(tmp_path / "ungrouped.parquet", pairs)
    models = [whole[0] / "fold_1", whole[0] / "fold_2"]
    inputs = {"reward_models": models, "data": tmp_path / "ungrouped.parquet"}
    score_pairs(task_of(CONFIG, tmp_path / "score", inputs), RecordingReporter())
    folds = pq.read_table(tmp_path / "score" / "scores.parquet")["fold"].to_pylist()
    for fold in (1, 2):
        data = tmp_path / "ungrouped.parquet"
        seen = list(pairs_at(data, training_rows(data, RewardModelStage(fold=fold, folds=2))))
        assert {int(pair.id) for pair in seen} == {row for row in range(12) if folds[row] != fold}


def test_identical_responses_have_no_gap(tmp_path: Path) -> None:
    model = load_reward_model(write_reward_model(tmp_path / "rm", write_policy(tmp_path / "base")))
    pairs = [EncodedPair(str(n), [1] * n, [5, 6, 2], [5, 6, 2], True, True) for n in range(1, 40)]
    rewards = score_encoded(model, pairs)
    assert torch.equal(rewards[:, 0], rewards[:, 1])
    assert rewards[:, 0].std() > 0.01


def test_reward_models_of_two_vocabularies_are_refused(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    given = inputs["reward_models"]
    assert isinstance(given, list)
    first, second = (shutil.copytree(path, tmp_path / f"rm {n}") for n, path in enumerate(given[:2]))
    vocabulary = json.loads((second / "tokenizer.json").read_text())
    last = max(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get)
    vocabulary["model"]["vocab"]["another"] = vocabulary["model"]["vocab"].pop(last)
    vocabulary["model"]["merges"] = []
    (second / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UnusableModel, match="rm 1, the reward_models, has another vocabulary than rm 0"):
        score_pairs(
            task_of(CONFIG, tmp_path / "score", inputs | {"reward_models": [first, second]}),
            RecordingReporter(),
        )


def test_a_reward_that_is_not_finite_names_its_pair(tmp_path: Path) -> None:
    model = load_reward_model(write_reward_model(tmp_path / "rm", write_policy(tmp_path / "base")))
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    pairs = [EncodedPair(str(n), [1, 4], [5, n, 2], [6, 2], True, True) for n in (5, 6, 7, 8)]
    with pytest.raises(UnusableModel, match="gives the pair 7 a reward that is not finite"):
        score_encoded(model, pairs)
