"""The processes of a stack as the kernel knows them: all that work in its state folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_RUN_LOG = re.compile(r"/(run_[0-9A-Z]+)-(\d+)/log$")
_FORK_SERVER = "multiprocessing.forkserver"


@dataclass(frozen=True)
class Process:
    """run: the run and the fence that a child works for, told by the file that it writes its output to."""

    pid: int
    parent: int
    command: str
    run: tuple[str, int] | None

    @property
    def is_fork_server(self) -> bool:
        """Whether runs' children are forked from it; they have its command line."""
        return _FORK_SERVER in self.command and self.run is None


def processes_in(root: Path) -> dict[int, Process]:
    """Every living process whose working folder lies in `root`, by pid. Linux."""
    found = (_read(int(entry.name), root) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(table: Mapping[int, Process], pid: int) -> set[int]:
    """Pids below a process."""
    below: set[int] = set()
    while more := {p.pid for p in table.values() if p.parent in below | {pid}} - below:
        below |= more
    return below


def _read(pid: int, root: Path) -> Process | None:
    folder = _PROC / str(pid)
    try:
        if not (folder / "cwd").readlink().is_relative_to(root):
            return None
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        written = _RUN_LOG.search(str((folder / "fd" / "1").readlink()))
    except OSError:  # gone meanwhile
        return None
    run = (written.group(1), int(written.group(2))) if written else None
    return None if state in "ZX" else Process(pid, int(parent), command, run)
