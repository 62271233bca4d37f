import json
import math
from pathlib import Path

import pytest
import torch

from mpo.config import DPOStage
from mpo.dpo.train import train_dpo
from mpo.errors import EmptySplit, StageInterrupted
from mpo.policies import load_policy
from mpo.records import write_rows
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy

Inputs = dict[str, Path | list[Path]]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    base = write_policy(tmp_path / "base")
    return {"policy": base, "reference": base, "data": write_pairs(tmp_path / "easy.parquet", 22)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder).state_dict()


def test_training_starts_at_log_two_and_learns_the_preference(inputs: Inputs, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    config = DPOStage(learning_rate=4e-3, epochs=4, batch_pairs=8)
    train_dpo(task_of(config, tmp_path / "dpo", inputs), reporter)
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 12) for k in range(1, 13)]
    assert {"loss", "learning_rate", "grad_norm", "accuracy", "gap"} <= reporter.steps[0][2].keys()
    summary = json.loads((tmp_path / "dpo" / "summary.json").read_text())
    assert summary["loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    assert summary["loss_last"] < 0.4
    assert summary["gap_last"] > 0.5
    assert (summary["pairs"], summary["steps"], summary["encoding"]["pairs"]) == (22, 12, 22)
    assert sorted(path.name for path in (tmp_path / "dpo").iterdir()) == ["model", "summary.json"]


def test_the_reference_stays_what_it_was_where_it_is_another_model(inputs: Inputs, tmp_path: Path) -> None:
    other = write_policy(tmp_path / "other", seed=3)
    reporter = RecordingReporter()
    task = task_of(DPOStage(max_steps=1), tmp_path / "dpo", inputs | {"reference": other})
    train_dpo(task, reporter)
    assert abs(reporter.steps[0][2]["loss"] - math.log(2)) > 1e-2


def test_resumed_equals_uninterrupted_bit_for_bit(inputs: Inputs, tmp_path: Path) -> None:
    config = DPOStage(learning_rate=1e-3, epochs=3, batch_pairs=8)
    train_dpo(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=5)
    with pytest.raises(StageInterrupted):
        train_dpo(task_of(config, tmp_path / "first", inputs), first)
    assert first.checkpoints == [5]
    rest = RecordingReporter()
    train_dpo(task_of(config, tmp_path / "rest", inputs, resume=tmp_path / "kept"), rest)
    assert [step for step, _, _ in rest.steps] == [6, 7, 8, 9]
    resumed = weights(tmp_path / "rest" / "model")
    for name, weight in weights(tmp_path / "whole" / "model").items():
        assert torch.equal(resumed[name], weight), name
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "rest")]
    assert summaries[0] == summaries[1]


def test_a_learning_rate_of_zero_leaves_weights_and_settings_alone(inputs: Inputs, tmp_path: Path) -> None:
    train_dpo(
        task_of(DPOStage(learning_rate=0.0, max_steps=1), tmp_path / "dpo", inputs), RecordingReporter()
    )
    before = weights(tmp_path / "base")
    for name, weight in weights(tmp_path / "dpo" / "model").items():
        assert torch.equal(before[name], weight), name
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        saved = json.loads((tmp_path / "dpo" / "model" / name).read_text())
        assert saved == json.loads((tmp_path / "base" / name).read_text()), name


def test_no_easy_pairs_is_an_empty_split(inputs: Inputs, tmp_path: Path) -> None:
    write_rows(tmp_path / "none.parquet", [])
    with pytest.raises(EmptySplit):
        train_dpo(
            task_of(DPOStage(), tmp_path / "dpo", inputs | {"data": tmp_path / "none.parquet"}),
            RecordingReporter(),
        )
