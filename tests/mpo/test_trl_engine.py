import json
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer import base_trainer

from mpo.config import DPOStage
from mpo.dpo.train import train_dpo
from mpo.errors import StageInterrupted, TrainingDiverged
from mpo.policies import load_policy
from mpo.records import write_rows
from mpo.trl_engine import RowOrder, engine_config
from tests.mpo.tiny import RecordingReporter, task_of, word_pairs, write_pairs, write_policy

Inputs = dict[str, Path | list[Path]]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    base = write_policy(tmp_path / "base")
    return {"policy": base, "reference": base, "data": write_pairs(tmp_path / "easy.parquet", 24)}


def test_a_pass_is_the_same_whenever_it_is_asked_for() -> None:
    order = RowOrder(list(range(1, 31)), batch_rows=4, seed=3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(30))
    order.set_epoch(0)
    assert list(order) == first


@pytest.mark.parametrize(
    ("batch_pairs", "micro", "parts"), [(16, 16, 1), (32, 32, 1), (96, 32, 3), (50, 25, 2)]
)
def test_large_batches_are_accumulated(tmp_path: Path, batch_pairs: int, micro: int, parts: int) -> None:
    task = task_of(DPOStage(batch_pairs=batch_pairs), tmp_path, {})
    options = engine_config(dict, task, rows=9600)
    assert options["per_device_train_batch_size"] == micro
    assert options["gradient_accumulation_steps"] == parts


def test_max_steps_never_lengthens_a_training(tmp_path: Path) -> None:
    long = task_of(DPOStage(batch_pairs=10, epochs=2, max_steps=1000), tmp_path, {})
    short = task_of(DPOStage(batch_pairs=10, epochs=2, max_steps=3), tmp_path, {})
    assert engine_config(dict, long, rows=95)["max_steps"] == 20
    assert engine_config(dict, short, rows=95)["max_steps"] == 3


def test_accumulated_batches_train_like_whole_ones(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DPOStage(engine="trl", learning_rate=1e-3, batch_pairs=8)
    train_dpo(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    monkeypatch.setattr("mpo.trl_engine.MICRO_BATCH_ROWS", 2)
    train_dpo(task_of(config, tmp_path / "parts", inputs), RecordingReporter())
    parts = load_policy(tmp_path / "parts" / "model").state_dict()
    start = load_policy(tmp_path / "base").state_dict()
    for name, weight in load_policy(tmp_path / "whole" / "model").state_dict().items():
        torch.testing.assert_close(parts[name], weight, atol=2e-5, rtol=0)
        assert (weight - start[name]).abs().max() > 1e-4, name


def test_a_checkpoint_at_every_step_holds_no_pickled_code(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RecordingReporter(kept=tmp_path / "kept")
    monkeypatch.setattr(reporter, "checkpoint_due", lambda: True)
    train_dpo(task_of(DPOStage(engine="trl", batch_pairs=8), tmp_path / "dpo", inputs), reporter)
    assert reporter.checkpoints == [0, 1, 2]
    assert not (tmp_path / "kept" / "training_args.bin").exists()
    for path in (tmp_path / "kept").iterdir():
        if path.suffix in {".pt", ".pth"} and not path.name.startswith("rng_state"):
            torch.load(path, weights_only=True)
    history = json.loads((tmp_path / "kept" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history] == [1, 2]


class Clock:
    """Ticks once each time it is read, so that the time between two readings is known."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_a_step_s_tokens_are_told_by_its_own_time_before_and_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_policy(tmp_path / "base")
    pairs = [replace(pair, chosen=f"{pair.chosen} {'red ' * int(pair.id)}") for pair in word_pairs(20)]
    write_rows(tmp_path / "easy.parquet", pairs)
    inputs: Inputs = {"policy": base, "reference": base, "data": tmp_path / "easy.parquet"}

    def told(engine: str, module: str, name: str, **options: Any) -> list[float]:
        config, reporter = DPOStage(engine=engine, batch_pairs=8, epochs=2), RecordingReporter(**options)  # type: ignore[arg-type]
        resume = tmp_path / "kept" if name == "rest" else None
        monkeypatch.setattr(f"{module}.time", Clock())
        with suppress(StageInterrupted):
            train_dpo(task_of(config, tmp_path / name, inputs, resume=resume), reporter)
        return [metrics["tokens_per_second"] for _, _, metrics in reporter.steps]

    native = told("native", "mpo.training", "native")
    assert all(a != b for a, b in pairwise(native)), "or a step taken for its neighbour is not seen"
    first = told("trl", "mpo.trl_engine", "first", kept=tmp_path / "kept", stop_after=2)
    rest = told("trl", "mpo.trl_engine", "rest")
    assert (len(first), first + rest) == (2, native)


def test_a_loss_that_is_not_finite_stops_the_training(inputs: Inputs, tmp_path: Path) -> None:
    broken = load_policy(tmp_path / "base")
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    broken.save_pretrained(tmp_path / "base")
    sound = inputs | {"reference": write_policy(tmp_path / "sound")}
    with pytest.raises(TrainingDiverged) as caught:
        train_dpo(task_of(DPOStage(engine="trl"), tmp_path / "dpo", sound), RecordingReporter())
    assert caught.value.facts["step"] == 1
    assert not list((tmp_path / "dpo").iterdir())


def test_nothing_is_sent_to_trls_authors(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: sent.append(kwargs))
    train_dpo(task_of(DPOStage(engine="trl", max_steps=1), tmp_path / "dpo", inputs), RecordingReporter())
    assert sent == []


def test_a_last_step_of_fewer_rows_is_a_mean_over_its_rows(inputs: Inputs, tmp_path: Path) -> None:
    """40 rows a step in passes of 20 would weigh the last 10 of 70 rows like the 20 before them."""
    data = write_pairs(tmp_path / "70.parquet", 70)
    last = {}
    for engine in ("native", "trl"):
        reporter = RecordingReporter()
        config = DPOStage(learning_rate=1e-3, batch_pairs=40, engine=engine)
        train_dpo(task_of(config, tmp_path / engine, inputs | {"data": data}), reporter)
        last[engine] = reporter.steps[-1][2]
    assert last["trl"]["loss"] == pytest.approx(last["native"]["loss"], abs=1e-5)
    assert last["trl"]["grad_norm"] == pytest.approx(last["native"]["grad_norm"], rel=1e-3)
