"""A process that outlives its worker by a moment, to kill what the worker's children left.

A child ends itself when its worker is gone, by a thread of its own; one that is frozen cannot, nor can a fork
server that is. So each worker has a guard: it is told of every process group, and kills those that are left
when its pipe from the worker ends, however the worker ended. Imports nothing but the standard library.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import IO

CLOSE_SECONDS = 5.0


class Guard:
    """The worker's side. A guard that was killed itself is replaced at the next word to it."""

    def __init__(self) -> None:
        self._lock, self._watched = Lock(), set[int]()
        self._process = _start()

    def watch(self, pid: int) -> None:
        """This process, and the group of its number, are to end with the worker."""
        with self._lock:
            self._watched.add(pid)
            self._say(f"+{pid}")

    def forget(self, pid: int) -> None:
        """They have ended; the number may come to be another's."""
        with self._lock:
            self._watched.discard(pid)
            self._say(f"-{pid}")

    def close(self) -> None:
        """The worker ends in good order: kill what is left, and wait for it."""
        with self._lock, contextlib.suppress(OSError):
            _pipe(self._process).close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            _abandon(self._process)

    def _say(self, line: str) -> None:
        try:
            _pipe(self._process).write(f"{line}\n".encode())
        except OSError:
            _abandon(self._process)
            self._process = _start()
            everything = "".join(f"+{pid}\n" for pid in sorted(self._watched))
            _pipe(self._process).write(everything.encode())


def _start() -> "subprocess.Popen[bytes]":
    # A session of its own: who kills the worker's group must not kill the guard before it has done its work.
    command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env={}, start_new_session=True)


def _pipe(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _abandon(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        _pipe(process).close()
    process.kill()
    process.wait()


def _began(pid: int) -> str | None:
    """A token of the moment at which a process began, where the system tells; None for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def main() -> None:
    """Until the pipe ends; then kill."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, str | None] = {}
    for line in sys.stdin.buffer:
        pid = int(line[1:])
        if line[:1] == b"+":
            watched[pid] = _began(pid)
        else:
            watched.pop(pid, None)
    for pid, began in watched.items():
        now = _began(pid)
        if now is not None and now != began:
            continue  # the number is another's by now
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
