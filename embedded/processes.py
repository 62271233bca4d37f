"""Which process is meant by a number: a pid is reused, a pid with its start time is not."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_POLL_SECONDS = 0.02
_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    pid: int
    started: str

    def is_running(self) -> bool:
        return started(self.pid) == self.started

    def send(self, signal_number: int) -> None:
        """To this process alone; one that is gone is none to complain about."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def kill_group(self) -> None:
        """SIGKILL to the process and to what it left in its group."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether the process, which need not be a child, was gone within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


def process_id(pid: int) -> ProcessId | None:
    """The process that has this pid now; None when there is none."""
    since = started(pid)
    return None if since is None else ProcessId(pid, since)


def started(pid: int) -> str | None:
    """A token of the moment at which the process began; None when there is none, or only a zombie."""
    if _PROC.joinpath("self").exists():
        return _started_by_proc(pid)
    return _started_by_ps(pid)


def has_number(pid: int) -> bool:
    """Whether anything has this pid, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def program_name(pid: int) -> str | None:
    """The name of the file that the process runs; None when there is no such process."""
    if started(pid) is None:
        return None
    if _PROC.joinpath("self").exists():
        with contextlib.suppress(OSError):
            return _PROC.joinpath(str(pid), "comm").read_text().strip()
        return None
    return Path(_ps(pid, "comm=")).name or None


def processes_within(folder: Path, name: str) -> list[ProcessId]:
    """The processes of this program's name whose working folder this is. Linux only; elsewhere none."""
    found = []
    for entry in _PROC.glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            pid = int(entry.parent.name)
            if entry.readlink() == folder and program_name(pid) == name and (this := process_id(pid)):
                found.append(this)
    return found


def _started_by_proc(pid: int) -> str | None:
    try:
        line = _PROC.joinpath(str(pid), "stat").read_text()
    except OSError:
        return None
    # The second field is the program's name and may hold anything, blanks and brackets too.
    fields = line.rpartition(")")[2].split()
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{_boot()}:{start_ticks}"


@cache
def _boot() -> str:
    # Ticks count from the boot: after another boot the same pid may begin at the same tick.
    try:
        return _PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started_by_ps(pid: int) -> str | None:
    state, _, since = _ps(pid, "stat=,lstart=").partition(" ")
    return None if not state or state.startswith("Z") else since.strip()


def _ps(pid: int, columns: str) -> str:
    found = subprocess.run(
        ["ps", "-o", columns, "-p", str(pid)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", **os.environ},
    )
    return found.stdout.strip()
