"""Trainings on two ranks of a worker's child: real processes, which are killed and stopped."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from safetensors.torch import load_file

from core.settings import settings
from mpo.config import DPOStage, RewardModelStage, ScoreStage, Stage
from tests.embedded.waiting import wait_for
from tests.mpo.tiny import write_pairs, write_policy
from tests.workers.test_child import is_gone
from workers import child, followers, fork_server
from workers.child import run_in_child
from workers.child_main import ranks_of
from workers.child_protocol import (
    Checkpointed,
    ChildInput,
    ChildTask,
    Crashed,
    Done,
    Failed,
    Progress,
    Report,
    Stopped,
)

LIMITS = {"max_prompt_tokens": 24, "max_response_tokens": 12}
SHORT = RewardModelStage(**LIMITS, batch_pairs=8, learning_rate=1e-3)
ENDLESS = RewardModelStage(**LIMITS, batch_pairs=8, epochs=1000)


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPO_DATABASE_URL", "postgresql+psycopg://withheld")
        patch.setenv("MPO_REDIS_URL", "redis://nowhere")
        patch.setenv("MPO_STORE_URL", "memory://")
        settings.cache_clear()
        fork_server.start_fork_server("gpu")
        yield
        fork_server.stop_fork_server()
    settings.cache_clear()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("followers")
    write_policy(folder / "base")
    write_pairs(folder / "pairs.parquet", count=25)
    return folder


def task_of(house: Path, folder: Path, config: Stage, ranks: int = 2) -> ChildTask:
    (folder / "output").mkdir(parents=True)
    return ChildTask(
        kind=config.kind,
        config=config.model_dump(mode="json"),
        inputs={
            "backbone": (ChildInput("base", house / "base", {}),),
            "data": (ChildInput("data", house / "pairs.parquet", {}),),
        },
        output=folder / "output",
        seed=0,
        resume=None,
        log=folder / "log",
        torch_threads=1,
        redis_url="",
        ranks=ranks,
    )


class Worker:
    """Hears a child, and does something at its first step. child: its pid, and so its group's."""

    def __init__(self, at_first_step: Callable[["Worker"], None] = lambda worker: None) -> None:
        self.reports: list[Report] = []
        self.aborts = self.stops = False
        self.members: list[int] = []
        self._at_first_step = at_first_step

    def run(self, task: ChildTask) -> object:
        return run_in_child(task, self.hear, lambda: self.aborts, lambda: self.stops)

    def hear(self, report: Report) -> None:
        self.reports.append(report)
        if isinstance(report, Progress) and report.step == 1:
            self.members = members_of(only_group())
            self._at_first_step(self)

    def losses(self) -> list[float]:
        return [report.metrics["loss"] for report in self.reports if isinstance(report, Progress)]


def only_group() -> int:
    """The group of the only child."""
    (pid,) = {pid for pid, parent in parents().items() if parent == server_pid()}
    return pid


def server_pid() -> int:
    pid = fork_server._fork_server_pid()
    assert pid is not None
    return pid


def parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def members_of(group: int) -> list[int]:
    """The child first, then its followers."""
    return [group, *(pid for pid, parent in parents().items() if parent == group)]


def test_two_ranks_of_a_child_train_as_one_does(house: Path, tmp_path: Path) -> None:
    alone, both = Worker(), Worker()
    one = task_of(house, tmp_path / "one", SHORT, ranks=1)
    two = task_of(house, tmp_path / "two", SHORT)
    assert isinstance(alone.run(one), Done)
    assert isinstance(both.run(two), Done)
    assert (len(alone.members), len(both.members)) == (1, 2)
    assert both.losses() == pytest.approx(alone.losses(), rel=1e-5)
    weights = [load_file(task.output / "model" / "model.safetensors") for task in (one, two)]
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).abs().max() < 2e-5
    wait_for(lambda: all(map(is_gone, both.members)))


def test_both_stop_and_the_first_saves(house: Path, tmp_path: Path) -> None:
    def stop(worker: Worker) -> None:
        worker.stops = True

    worker = Worker(stop)
    assert isinstance(worker.run(task_of(house, tmp_path, ENDLESS)), Stopped)
    assert [type(report) for report in worker.reports].count(Checkpointed) == 1
    wait_for(lambda: all(map(is_gone, worker.members)))


def test_a_cancelled_child_takes_its_followers_along(house: Path, tmp_path: Path) -> None:
    def freeze_and_abort(worker: Worker) -> None:
        os.kill(worker.members[1], signal.SIGSTOP)
        worker.aborts = True

    worker = Worker(freeze_and_abort)
    assert worker.run(task_of(house, tmp_path, ENDLESS)) is None
    wait_for(lambda: all(map(is_gone, worker.members)))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_the_run_s_crash(house: Path, tmp_path: Path, rank: int) -> None:
    def kill(worker: Worker) -> None:
        os.kill(worker.members[rank], signal.SIGKILL)

    worker = Worker(kill)
    outcome = worker.run(task_of(house, tmp_path, ENDLESS))
    if rank == 0:
        assert outcome == Crashed(-signal.SIGKILL)
    else:
        assert isinstance(outcome, Failed)
        assert outcome.code == "rank_failed"
        assert outcome.retryable, "a crash, that is tried again"
    wait_for(lambda: all(map(is_gone, worker.members)))


def test_a_child_that_waits_for_a_failed_follower_for_ever_is_killed(house: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "main", waits_for_a_failed_follower)
        assert Worker().run(task_of(house, tmp_path, ENDLESS)) == Crashed(-signal.SIGKILL)


def waits_for_a_failed_follower(task: ChildTask, pipe: Connection, life: Connection) -> None:
    os.setsid()
    followers.GRACE_SECONDS = 0.1
    followers.start_followers(task.ranks, sys.exit)  # with its number, which is no success
    signal.pause()


def test_what_cannot_be_spread_stays_with_one_process(house: Path, tmp_path: Path) -> None:
    for number, config in enumerate([ScoreStage(), DPOStage(engine="trl")]):
        assert ranks_of(task_of(house, tmp_path / str(number), config)) == 1
    stage = task_of(house, tmp_path / "stage", SHORT, ranks=3)
    assert ranks_of(stage) == 3
    assert ranks_of(replace(stage, kind="compare", config={})) == 1
