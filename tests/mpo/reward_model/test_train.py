import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpo.config import RewardModelStage
from mpo.errors import StageInterrupted
from mpo.hold_out import assign_folds
from mpo.policies import load_reward_model
from mpo.records import write_rows
from mpo.reward_model.score import reward_offset, score_encoded
from mpo.reward_model.train import train_reward_model, training_pairs
from mpo.tokenization import encode_pairs, load_tokenizer
from tests.mpo.tiny import RecordingReporter, task_of, word_pairs, write_policy

Inputs = dict[str, Path | list[Path]]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    pairs = [replace(pair, group=row // 4) for row, pair in enumerate(word_pairs(32))]
    write_rows(tmp_path / "train.parquet", pairs[:24])
    write_rows(tmp_path / "eval.parquet", pairs[24:])
    return {"backbone": write_policy(tmp_path / "base"), "data": tmp_path / "train.parquet"}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_reward_model(output / "model").state_dict()


def test_training_learns_the_preference_and_reports_every_step(inputs: Inputs, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    config = RewardModelStage(learning_rate=5e-3, epochs=6, batch_pairs=8)
    task = task_of(config, tmp_path / "rm", inputs | {"eval": tmp_path / "eval.parquet"})
    train_reward_model(task, reporter)
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 18) for k in range(1, 19)]
    assert [m["learning_rate"] for _, _, m in reporter.steps] == pytest.approx(
        [5e-3 * (1 - k / 18) for k in range(18)]
    )
    assert {"loss", "learning_rate", "grad_norm", "accuracy", "gap"} <= reporter.steps[0][2].keys()
    summary = json.loads((tmp_path / "rm" / "summary.json").read_text())
    assert summary["loss_first"] == pytest.approx(0.69, abs=0.1)
    assert summary["loss_last"] < 0.2
    assert summary["loss_last"] == reporter.steps[-1][2]["loss"]
    assert (summary["pairs"], summary["eval_pairs"], summary["steps"]) == (24, 8, 18)
    assert 0 <= summary["accuracy_ci95"][0] <= summary["accuracy"] <= summary["accuracy_ci95"][1] <= 1
    assert 0 <= summary["ece"] <= 1
    assert sorted(path.name for path in (tmp_path / "rm").iterdir()) == ["model", "summary.json"]


def test_training_responses_score_zero_on_average(inputs: Inputs, tmp_path: Path) -> None:
    train_reward_model(task_of(RewardModelStage(max_steps=2), tmp_path / "rm", inputs), RecordingReporter())
    model = load_reward_model(tmp_path / "rm" / "model")
    pairs, _ = encode_pairs(
        word_pairs(24), load_tokenizer(tmp_path / "base"), max_prompt_tokens=None, max_response_tokens=None
    )
    assert reward_offset(model) != 0
    assert score_encoded(model, pairs).mean().item() == pytest.approx(0, abs=1e-5)


def test_a_folds_model_sees_no_pair_of_its_fold(inputs: Inputs, tmp_path: Path) -> None:
    folds = assign_folds([row // 4 for row in range(24)], 3)
    seen = training_pairs(tmp_path / "train.parquet", RewardModelStage(fold=2, folds=3))
    assert [pair.id for pair in seen] == [str(row) for row, fold in enumerate(folds) if fold != 2]
    assert {pair.group for pair in seen}.isdisjoint({row // 4 for row, fold in enumerate(folds) if fold == 2})


def test_resumed_equals_uninterrupted_bit_for_bit(inputs: Inputs, tmp_path: Path) -> None:
    # Rows of 5 make the passes end unevenly; stops: at a pass's end, and within the second pass.
    config = RewardModelStage(learning_rate=1e-3, epochs=3, batch_pairs=7)
    train_reward_model(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    whole = weights(tmp_path / "whole")
    for stop_after in (4, 6):
        kept = tmp_path / f"kept{stop_after}"
        first = RecordingReporter(kept=kept, stop_after=stop_after)
        with pytest.raises(StageInterrupted):
            train_reward_model(task_of(config, tmp_path / f"first{stop_after}", inputs), first)
        assert first.checkpoints == [stop_after]
        assert not list((tmp_path / f"first{stop_after}").iterdir())
        rest, output = RecordingReporter(), tmp_path / f"rest{stop_after}"
        train_reward_model(task_of(config, output, inputs, resume=kept), rest)
        assert [step for step, _, _ in rest.steps] == list(range(stop_after + 1, 13))
        resumed = weights(output)
        for name, weight in whole.items():
            assert torch.equal(resumed[name], weight), name
        summaries = [json.loads((f / "summary.json").read_text()) for f in (tmp_path / "whole", output)]
        assert summaries[0] == summaries[1]


def test_the_seed_decides_the_result(inputs: Inputs, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        task = task_of(RewardModelStage(max_steps=2), tmp_path / name, inputs, seed=seed)
        train_reward_model(task, RecordingReporter())
    heads = [weights(tmp_path / name)["score.weight"] for name in "abc"]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
