import json
import shutil
from pathlib import Path

import pytest
import torch

from mpo.config import SFTStage
from mpo.errors import StageInterrupted, TrainingDiverged
from mpo.policies import load_policy
from mpo.sft.train import train_sft
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path | list[Path]]:
    return {"policy": write_policy(tmp_path / "base"), "data": write_pairs(tmp_path / "pairs.parquet", 22)}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_policy(output / "model").state_dict()


def test_training_lowers_the_loss_and_reports_every_step(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    config = SFTStage(learning_rate=1e-2, epochs=4, batch_pairs=8)
    train_sft(task_of(config, tmp_path / "sft", inputs), reporter)
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 12) for k in range(1, 13)]
    rates = [metrics["learning_rate"] for _, _, metrics in reporter.steps]
    assert rates == pytest.approx([1e-2 * (1 - k / 12) for k in range(12)])
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["loss_last"] < 0.6 * summary["loss_first"]
    assert summary["loss_last"] == reporter.steps[-1][2]["loss"]
    assert (summary["pairs"], summary["steps"], summary["encoding"]["pairs"]) == (22, 12, 22)
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == ["model", "summary.json"]


def test_resumed_equals_uninterrupted_bit_for_bit(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    config = SFTStage(learning_rate=1e-2, epochs=3, batch_pairs=8)
    train_sft(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=4)
    with pytest.raises(StageInterrupted):
        train_sft(task_of(config, tmp_path / "first", inputs), first)
    assert first.checkpoints == [4]
    rest = RecordingReporter()
    train_sft(task_of(config, tmp_path / "rest", inputs, resume=tmp_path / "kept"), rest)
    assert [step for step, _, _ in rest.steps] == [5, 6, 7, 8, 9]
    resumed = weights(tmp_path / "rest")
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(resumed[name], weight), name
    summaries = [(tmp_path / run / "summary.json").read_text() for run in ("whole", "rest")]
    assert summaries[0] == summaries[1]


def test_a_learning_rate_of_zero_and_a_single_step_leave_the_weights_alone(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    config = SFTStage(learning_rate=0.0, max_steps=1)
    train_sft(task_of(config, tmp_path / "sft", inputs), reporter)
    assert len(reporter.steps) == 1
    before = load_policy(tmp_path / "base").state_dict()
    for name, weight in weights(tmp_path / "sft").items():
        assert torch.equal(before[name], weight), name


def test_a_checkpoint_at_every_step_but_the_last(
    inputs: dict[str, Path | list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RecordingReporter()
    monkeypatch.setattr(reporter, "checkpoint_due", lambda: True)
    train_sft(task_of(SFTStage(batch_pairs=8), tmp_path / "sft", inputs), reporter)
    assert reporter.checkpoints == [1, 2]
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == ["model", "summary.json"]


def test_a_loss_that_is_not_finite_stops_the_training(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    broken = load_policy(tmp_path / "base")
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    shutil.copytree(tmp_path / "broken", tmp_path / "base", dirs_exist_ok=True)
    with pytest.raises(TrainingDiverged) as caught:
        train_sft(task_of(SFTStage(), tmp_path / "sft", inputs), RecordingReporter())
    assert caught.value.facts["step"] == 1
    assert not (tmp_path / "sft" / "model").exists()
