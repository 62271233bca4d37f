"""The environment that `mpo up` gives to its processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedded import services
from embedded.services import Services
from embedded.state import StateFolder
from mpo.machine_memory import machine_memory

MEMORY, DEVICE = "MPO_TRAINING_MEMORY_BYTES", "MPO_TRAINING_DEVICE"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str | None]]:
    """What each of our processes is given as the memory of trainings, by what the user has set."""

    def started_with(**environment: str) -> list[str | None]:
        for name in (MEMORY, DEVICE, "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(services, "_GPU_FILES", (tmp_path / "gpu",))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ours = Services(StateFolder.at(tmp_path / "state"), tmp_path, 0, cores=1)
        return [program.environment.get(MEMORY) for program in (ours.api(), *ours.workers())]

    return started_with


def test_trainings_have_the_memory_of_the_machine(given: Callable[..., list[str | None]]) -> None:
    assert given() == given(**{DEVICE: "cpu"}) == [str(machine_memory())] * 4


@pytest.mark.parametrize("own", ["0", "1000000"])
def test_what_the_user_says_stays(given: Callable[..., list[str | None]], own: str) -> None:
    assert given(**{MEMORY: own}) == [own] * 4


def test_a_gpu_has_not_the_memory_of_the_machine(given: Callable[..., list[str | None]]) -> None:
    assert given(**{DEVICE: "cuda"}) == [None] * 4
    assert given(**{DEVICE: "cuda", MEMORY: "7"}) == ["7"] * 4


def test_where_workers_take_a_gpu_the_machine_s_memory_says_nothing(
    given: Callable[..., list[str | None]], tmp_path: Path
) -> None:
    (tmp_path / "gpu").touch()
    # They take it whatever forecasts are of, unless it is hidden from them.
    assert given() == given(**{DEVICE: "cpu"}) == given(CUDA_VISIBLE_DEVICES="0") == [None] * 4
    assert given(CUDA_VISIBLE_DEVICES="") == given(CUDA_VISIBLE_DEVICES="-1") == [str(machine_memory())] * 4


def test_a_machine_that_does_not_tell_refuses_nothing(
    given: Callable[..., list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "machine_memory", lambda: 0)
    assert given() == ["0"] * 4
