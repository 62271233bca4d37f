"""Children, their fork server and the guard, when one is killed, frozen, or leaves processes behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread

import pytest

from core.settings import settings
from mpo import stages
from tests.embedded.waiting import wait_for
from workers import child, child_main, fork_server
from workers.child import run_in_child
from workers.child_protocol import Checkpointed, ChildTask, Crashed, Done, Progress, Report, Stopped
from workers.device_use import is_in_use, lock_file
from workers.guard import Guard

FOREVER = 3600


@pytest.fixture(scope="module", autouse=True)
def _fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPO_DATABASE_URL", "postgresql+psycopg://withheld")
        patch.setenv("MPO_REDIS_URL", "redis://nowhere")
        patch.setenv("MPO_STORE_URL", "memory://")
        patch.setenv("MPO_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        settings.cache_clear()
        fork_server.start_fork_server("cpu")
        yield
        fork_server.stop_fork_server()
    settings.cache_clear()


@pytest.fixture
def task(tmp_path: Path) -> ChildTask:
    return ChildTask("test", {}, {}, tmp_path, 0, None, tmp_path / "log", 1, "")


def run(task: ChildTask, main: Callable[..., None], **asked: Callable[..., object]) -> object:
    """`run_in_child` with another child than the product's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "main", main)
        hear = asked.get("hear", lambda report: None)
        return run_in_child(task, hear, asked.get("abort", _never), asked.get("stop", _never))  # type: ignore[arg-type]


def _never() -> bool:
    return False


def ends(task: ChildTask, pipe: Connection, life: Connection) -> None:
    pipe.send(Done(0))


def waits(task: ChildTask, pipe: Connection, life: Connection) -> None:
    """Deaf to SIGTERM; says its number first."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send(Progress(os.getpid(), 1, {}))
    time.sleep(FOREVER)


def checkpoints(task: ChildTask, pipe: Connection, life: Connection) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send(Checkpointed(task.output, os.getpid()))
    time.sleep(FOREVER)


def saves(task: ChildTask, pipe: Connection, life: Connection) -> None:
    """Says its number, saves when it is asked to stop, and takes its time."""
    os.setsid()
    asked = Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    pipe.send(Progress(os.getpid(), 1, {}))
    asked.wait(FOREVER)
    time.sleep(0.5)
    pipe.send(Checkpointed(task.output, 1))
    pipe.recv()
    pipe.send(Stopped())


def has_offspring(task: ChildTask, pipe: Connection, life: Connection) -> None:
    """Forks one that holds the same pipe, says its number, and dies."""
    os.setsid()
    if grandchild := os.fork():
        pipe.send(Progress(grandchild, 1, {}))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(FOREVER)


def works_on_a_stage(task: ChildTask, pipe: Connection, life: Connection) -> None:
    """The product's child, with a stage that says its number and goes on for ever."""

    def stage(_: object, reporter: child_main.PipeReporter) -> None:
        reporter.progress(os.getpid(), 1, {})
        time.sleep(FOREVER)

    stages.run_stage = stage  # type: ignore[assignment]
    child_main.main(task, pipe, life)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def server_pid() -> int:
    pid = fork_server._fork_server_pid()
    assert pid is not None
    return pid


def test_a_killed_fork_server_costs_no_run(task: ChildTask) -> None:
    for _ in range(2):
        os.kill(server_pid(), signal.SIGKILL)
        assert isinstance(run(task, ends), Done)


def test_a_frozen_fork_server_is_replaced(task: ChildTask, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = server_pid()
    os.kill(frozen, signal.SIGSTOP)
    monkeypatch.setattr(fork_server, "START_WITHIN_SECONDS", 0.2)
    with contextlib.suppress(fork_server.ForkServerGone):
        # The next one too may take longer to start than that.
        run(task, ends)
    monkeypatch.undo()
    assert isinstance(run(task, ends), Done)
    assert server_pid() != frozen
    assert is_gone(frozen)


def test_a_stop_that_the_fork_server_gets_too_leaves_children_time_to_save(task: ChildTask) -> None:
    """As systemd and shells send it: to every process of the worker."""
    stopping, kept = Event(), list[Report]()

    def hear(report: Report) -> None:
        kept.append(report)
        if isinstance(report, Progress):
            os.kill(server_pid(), signal.SIGTERM)
            os.kill(report.step, signal.SIGTERM)
            stopping.set()

    assert isinstance(run(task, saves, hear=hear, stop=stopping.is_set), Stopped)
    assert [type(report) for report in kept] == [Progress, Checkpointed]
    assert isinstance(run(task, ends), Done)


def test_a_fork_server_killed_under_a_child_is_that_run_s_crash_and_no_other_s(task: ChildTask) -> None:
    pids: list[int] = []

    def hear(report: Report) -> None:
        assert isinstance(report, Progress)
        pids.append(report.step)
        os.kill(server_pid(), signal.SIGKILL)

    assert isinstance(run(task, waits, hear=hear), Crashed)
    wait_for(lambda: is_gone(pids[0]))
    assert isinstance(run(task, ends), Done)


def test_a_child_s_death_is_noticed_though_a_grandchild_holds_its_pipe(task: ChildTask) -> None:
    reports: list[Report] = []
    outcome = run(task, has_offspring, hear=reports.append)
    assert outcome == Crashed(-signal.SIGKILL)
    (report,) = reports
    assert isinstance(report, Progress)
    wait_for(lambda: is_gone(report.step))


@pytest.mark.parametrize("asked", ["abort", "stop"])
def test_a_deaf_child_is_ended_while_its_worker_is_busy_with_a_checkpoint(
    task: ChildTask, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(child, "STOP_WITHIN_SECONDS", 0.3)
    monkeypatch.setattr(child, "KILL_AFTER_SECONDS", 0.2)
    told = Event()

    def hear(report: Report) -> None:
        assert isinstance(report, Checkpointed)
        told.set()
        # Storing it takes as long as the child lives: were the child ended by who listens, for ever.
        wait_for(lambda: is_gone(report.step))

    outcome = run(task, checkpoints, hear=hear, **{asked: told.is_set})
    assert outcome == (None if asked == "abort" else Stopped())


def test_a_child_that_freezes_is_ended_too(task: ChildTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "KILL_AFTER_SECONDS", 0.2)
    told = Event()
    pids: list[int] = []

    def hear(report: Report) -> None:
        assert isinstance(report, Progress)
        pids.append(report.step)
        os.kill(report.step, signal.SIGSTOP)
        told.set()

    assert run(task, waits, hear=hear, abort=told.is_set) is None
    wait_for(lambda: is_gone(pids[0]))


@pytest.mark.parametrize(("kind", "is_training"), [("sft", True), ("split", False)])
def test_a_stage_of_the_gpu_slot_shows_that_it_is_at_work_until_it_is_killed(
    task: ChildTask, kind: str, is_training: bool
) -> None:
    seen: list[bool] = []

    def hear(report: Report) -> None:
        assert isinstance(report, Progress)
        seen.append(is_in_use(lock_file()))
        os.kill(report.step, signal.SIGKILL)

    staged = replace(task, kind=kind, config={"kind": kind})
    assert run(staged, works_on_a_stage, hear=hear) == Crashed(-signal.SIGKILL)
    assert seen == [is_training]
    assert not is_in_use(lock_file())


_WORKER = """
import os, signal, subprocess, sys, time
from workers.guard import Guard
guard = Guard()
command = ["sh", "-c", "sleep 3600 & echo begun; sleep 3600"]
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
guard.watch(child.pid)
if sys.argv[1] == "without guard":
    os.kill(guard._process.pid, signal.SIGKILL)
    guard._process.wait()
    guard.watch(child.pid)
os.killpg(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("guard", ["with guard", "without guard"])
def test_a_killed_worker_leaves_no_frozen_group(guard: str) -> None:
    worker = subprocess.Popen([sys.executable, "-c", _WORKER, guard], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    with worker.stdout:
        group = int(worker.stdout.readline())
    members = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _group(p) == group]
    assert len(members) >= 2
    worker.kill()
    worker.wait()
    wait_for(lambda: all(is_gone(pid) for pid in members))


def test_a_guard_leaves_alone_what_it_was_told_to_forget() -> None:
    guard = Guard()
    with subprocess.Popen(["sleep", "3600"], start_new_session=True) as bystander:
        guard.watch(bystander.pid)
        guard.forget(bystander.pid)
        guard.close()
        assert bystander.poll() is None
        bystander.kill()


def test_runs_at_once_do_not_end_one_another(task: ChildTask) -> None:
    outcomes: list[object] = []
    threads = [Thread(target=lambda: outcomes.append(run_in_child_of_test(task))) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "main", ends)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [type(outcome) for outcome in outcomes] == [Done] * 4


def run_in_child_of_test(task: ChildTask) -> object:
    return run_in_child(task, lambda report: None, _never, _never)


def _group(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[2])
    except (OSError, IndexError):
        return None
