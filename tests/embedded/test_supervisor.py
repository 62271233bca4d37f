import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from embedded import liveness
from embedded import supervisor as supervision
from embedded.errors import NotReadyInTime, ProgramFailed
from embedded.liveness import CannotTell
from embedded.processes import process_id
from embedded.services import inherited_environment
from embedded.state import Recorded, write_whole
from embedded.supervisor import Program, StopAsked, Supervisor

# Says who it is, then waits for a signal.
_NOTE_PID = "import os, pathlib; pathlib.Path('pids').open('a').write(f'{os.getpid()}\\n'); "
_WAIT = "import signal; signal.pause()"


@pytest.fixture
def records() -> list[list[Recorded]]:
    return []


@pytest.fixture
def supervisor(records: list[list[Recorded]]) -> Iterator[Supervisor]:
    made = Supervisor(records.append)
    with made.listening():
        yield made
        made.stop()


def program(
    folder: Path, code: str, name: str = "loop", tier: int = 0, grace_seconds: float = 10.0
) -> Program:
    return Program(
        name=name,
        command=(sys.executable, "-c", code),
        environment=inherited_environment(),
        folder=folder,
        log=folder / f"{name}.log",
        tier=tier,
        grace_seconds=grace_seconds,
    )


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_what_is_killed_runs_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(program(tmp_path, _NOTE_PID + _WAIT))
    supervisor.wait_until(lambda: len(pids(tmp_path)) == 1, "loop", 10)

    os.kill(pids(tmp_path)[0], signal.SIGKILL)

    supervisor.wait_until(lambda: len(pids(tmp_path)) == 2, "loop", 10)
    first, second = pids(tmp_path)
    assert process_id(first) is None
    assert process_id(second) is not None


def test_a_program_that_cannot_be_started_for_a_while_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: neither can be said what runs, nor can a log be written."""
    monkeypatch.setattr(supervision, "LONGEST_DELAY_SECONDS", 0.05)
    supervisor = Supervisor(lambda running: write_whole(tmp_path / "processes.json", repr(running)))
    with supervisor.listening():
        for name in ("loop", "other"):
            supervisor.start(program(tmp_path, _NOTE_PID + _WAIT, name))
        supervisor.wait_until(lambda: len(pids(tmp_path)) == 2, "loop", 10)
        log, aside = tmp_path / "loop.log", tmp_path / "aside"
        log.rename(aside)
        log.symlink_to(log)
        (tmp_path / "processes.json").unlink()
        (tmp_path / "processes.json").mkdir()
        supervised = supervisor._supervised["loop"]
        assert supervised.process is not None
        os.kill(supervised.process.pid, signal.SIGKILL)
        supervisor.wait_until(lambda: supervised.start_again_at is not None, "loop", 10)
        refused_at = supervised.start_again_at
        supervisor.wait_until(lambda: supervised.start_again_at not in (None, refused_at), "loop", 10)
        assert supervisor._supervised["other"].is_running
        log.unlink()
        supervisor.wait_until(lambda: len(pids(tmp_path)) == 3, "loop", 10)
        supervisor.stop()
    assert not list(tmp_path.glob(".processes.json-*"))


def test_a_program_that_always_dies_is_reported_with_the_end_of_its_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(program(tmp_path, "raise SystemExit('no such table')"))

    with pytest.raises(ProgramFailed, match="no such table"):
        supervisor.wait_until(lambda: False, "loop", 10)


def test_delays_between_restarts_double_up_to_a_limit(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "HOPELESS_CRASHES", 6)
    monkeypatch.setattr(supervision, "LONGEST_DELAY_SECONDS", 0.2)
    monkeypatch.setattr(supervision, "FIRST_DELAY_SECONDS", 0.05)
    times = "import pathlib, time; pathlib.Path('times').open('a').write(f'{time.monotonic()}\\n'); exit(1)"
    supervisor.start(program(tmp_path, times))
    supervisor._supervised["loop"].delay_seconds = 0.05

    with pytest.raises(ProgramFailed):
        supervisor.wait_until(lambda: False, "loop", 20)

    starts = [float(line) for line in (tmp_path / "times").read_text().splitlines()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert [gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2, 0.2, 0.2), strict=True)] == [True] * 5


def test_what_runs_but_does_not_answer_runs_again(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(liveness, "START_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(supervision, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(supervision, "PATIENCE_SECONDS", 0.1)
    asked: list[int] = []

    def answers(pid: int) -> bool:
        asked.append(pid)
        if len(set(asked)) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(set(asked)) == 1 and len(asked) < 5:
            # Who would know is away: no reason to end anything.
            raise CannotTell
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"

    supervisor.start(replace(program(tmp_path, _NOTE_PID + _WAIT), answers=answers))
    supervisor.wait_until(lambda: len(pids(tmp_path)) == 1, "loop", 10)
    frozen = process_id(pids(tmp_path)[0])
    assert frozen is not None
    frozen.send(signal.SIGSTOP)

    supervisor.serve()

    assert not frozen.is_running()
    assert asked[4] == frozen.pid


def test_higher_tiers_stop_first(supervisor: Supervisor, tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; "
        "signal.signal(signal.SIGTERM, lambda *_: (Path('ends').open('a').write('{0} '), sys.exit())); "
        "Path('{0}').touch(); signal.pause()"
    )
    for name, tier in (("base", 0), ("top", 2), ("middle", 1)):
        supervisor.start(program(tmp_path, code.format(name), name, tier))
        supervisor.wait_until((tmp_path / name).exists, name, 10)

    supervisor.stop()

    assert (tmp_path / "ends").read_text().split() == ["top", "middle", "base"]


def test_what_ignores_the_signal_is_killed_after_its_grace(supervisor: Supervisor, tmp_path: Path) -> None:
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        + _NOTE_PID
        + "\nwhile True: signal.pause()"
    )
    supervisor.start(program(tmp_path, deaf, grace_seconds=0.2))
    supervisor.wait_until(lambda: bool(pids(tmp_path)), "loop", 10)

    supervisor.stop()

    assert process_id(pids(tmp_path)[0]) is None


def test_what_a_dead_program_leaves_in_its_group_dies_too(supervisor: Supervisor, tmp_path: Path) -> None:
    child = "import subprocess; c = subprocess.Popen(['sleep', '600']); "
    note = "import pathlib; pathlib.Path('pids').open('a').write(f'{c.pid}\\n'); "
    supervisor.start(program(tmp_path, child + note + _WAIT))
    supervisor.wait_until(lambda: bool(pids(tmp_path)), "loop", 10)
    grandchild = process_id(pids(tmp_path)[0])

    supervisor.stop()

    assert grandchild is not None
    assert grandchild.wait(5)


def test_a_signal_to_stop_ends_a_wait(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(program(tmp_path, _WAIT))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.raises(StopAsked):
        supervisor.wait_until(lambda: False, "loop", 20)


def test_serving_ends_with_a_signal_to_stop(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(program(tmp_path, _WAIT))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    supervisor.serve()


def test_what_is_never_ready_is_reported(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(program(tmp_path, _WAIT))

    with pytest.raises(NotReadyInTime, match="loop was not ready within"):
        supervisor.wait_until(lambda: False, "loop", 0.2)


def test_a_program_run_once_ends_or_says_why(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.run(program(tmp_path, "pass"), 10)

    with pytest.raises(ProgramFailed, match=r"ended with status 1;(?s:.*)bad revision"):
        supervisor.run(program(tmp_path, "raise SystemExit('bad revision')"), 10)


def test_what_runs_is_recorded_and_nothing_after_the_stop(
    supervisor: Supervisor, records: list[list[Recorded]], tmp_path: Path
) -> None:
    supervisor.start(program(tmp_path, _WAIT))
    running = records[-1]

    supervisor.stop()

    assert [each.name for each in running] == ["loop"]
    assert not running[0].process.is_running()
    assert records[-1] == []


def test_a_log_that_has_grown_large_is_set_aside(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_LONGEST_LOG_BYTES", 10)
    (tmp_path / "loop.log").write_text("a line of an earlier start\n")

    supervisor.run(program(tmp_path, "print('new')"), 10)

    assert (tmp_path / "loop.log").read_text() == "new\n"
    assert (tmp_path / "loop.log.1").read_text() == "a line of an earlier start\n"
