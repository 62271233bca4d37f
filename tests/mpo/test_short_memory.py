"""Memory that is short: known by what torch raises, gone around once, and in the end said with what helps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.config import DPOStage, RewardModelStage
from mpo.errors import OutOfMemory
from mpo.reward_model.objective import PairRewards
from mpo.short_memory import if_it_fits, is_short, out_of_memory
from mpo.stages import run_stage
from mpo.step_gradients import MEMORY_IS_SHORT
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy


def raised_by(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what is asked
        call()
    return caught.value


def test_what_a_cpu_or_a_gpu_raises_is_known() -> None:
    too_much = partial(torch.empty, 2**60, dtype=torch.uint8)
    assert is_short(raised_by(too_much))
    assert is_short(torch.OutOfMemoryError("the device is full"))
    assert is_short(MemoryError())
    assert not is_short(raised_by(lambda: torch.ones(2) @ torch.ones(3)))
    assert if_it_fits(too_much) is None
    assert if_it_fits(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        if_it_fits(lambda: 1 // 0)


@dataclass
class Full:
    """`losses` of a device that holds nothing."""

    asked: int = 0

    def __call__(self, _model: object, rows: Sequence[int]) -> Any:
        self.asked += 1
        raise torch.OutOfMemoryError(f"no room for {len(rows)} pairs")


def test_a_stage_whose_half_passes_do_not_fit_says_so_and_ends_with_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = write_policy(tmp_path / "base"), write_pairs(tmp_path / "pairs.parquet")
    config = RewardModelStage(batch_pairs=8, max_prompt_tokens=32, max_response_tokens=32)
    task = task_of(config, tmp_path / "out", {"backbone": base, "data": data})
    monkeypatch.setattr(PairRewards, "losses", full := Full())
    with pytest.raises(OutOfMemory, match=r"estimated to need 0\.\d\d GiB\.") as caught:
        run_stage(task, reporter := RecordingReporter())
    assert full.asked == 2
    assert reporter.warnings[-1] == MEMORY_IS_SHORT
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_of_a_model_that_fills_the_memory_the_nearest_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_policy(tmp_path / "base")
    config = DPOStage(batch_pairs=64, max_prompt_tokens=2048, max_response_tokens=2048)
    task = task_of(config, tmp_path / "out", {"policy": base, "reference": base, "data": tmp_path})
    error = out_of_memory(task)
    assert "The nearest setting that needs clearly less is " in error.detail
    assert error.code == "out_of_memory"
    (base / "config.json").write_text("{}")
    assert "shorter texts" in out_of_memory(task).detail
