"""A stack of its own in a folder: started as its user does, looked into by SQL and by the process table."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from embedded import postgres
from embedded.state import StateFolder
from experiments.chaos.process_table import Process, descendants, processes_in

CODE = Path(__file__).resolve().parents[2]
DOWN_SECONDS = 120.0
_POLL_SECONDS = 0.05


class NotInTime(Exception):
    """Something that was waited for did not come."""


def wait_until(ready: Callable[[], bool], what: str, seconds: float) -> None:
    """Raises NotInTime."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise NotInTime(f"{what}: not within {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


class Stack:
    """`mpo up`, its port and its settings; may be killed and started again on the same state."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state, self.log = StateFolder.at(folder / "state"), folder / "up.log"
        self._settings, self._port = dict(settings), _free_port()
        self._supervisor: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where the API answers."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def supervisor(self) -> int:
        """The pid of `mpo up`."""
        assert self._supervisor is not None
        return self._supervisor.pid

    def start(self) -> None:
        """Returns once it is ready; raises NotInTime with the log's end where it does not become so."""
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        up = [sys.executable, "-m", "embedded", "up", "--state", str(self.state.root)]
        with self.log.open("a") as log:
            self._supervisor = subprocess.Popen(
                ["env", f"PYTHONPATH={CODE}", *settings, *up, "--port", str(self._port)],
                stdout=subprocess.PIPE, stderr=log, text=True, cwd=CODE, start_new_session=True,
            )  # fmt: skip
        assert self._supervisor.stdout is not None
        with self._supervisor.stdout as said:
            line = said.readline()
        if not line.startswith("ready "):
            self._supervisor.wait()
            raise NotInTime(f"`mpo up` did not get ready:\n{self.log.read_text()[-4000:]}")

    def kill_supervisor(self) -> None:
        """`mpo up` alone: what it had started is orphaned."""
        assert self._supervisor is not None
        self._supervisor.kill()
        self._supervisor.wait()

    def kill_everything(self) -> None:
        """As when the machine goes down: every process, `mpo up` first, so that it restarts nothing."""
        self.kill_supervisor()
        # Until none is left: one that was about to be forked is not in the first table.
        while table := self.table():
            for pid in table:
                send(pid, signal.SIGKILL)

    def down(self) -> None:
        """`mpo down`; raises NotInTime."""
        down = [sys.executable, "-m", "embedded", "down", "--state", str(self.state.root)]
        subprocess.run(["env", f"PYTHONPATH={CODE}", *down], cwd=CODE, check=True, capture_output=True)
        assert self._supervisor is not None
        try:
            self._supervisor.wait(DOWN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise NotInTime("`mpo up` did not end after `mpo down`") from error

    def pids(self) -> dict[str, int]:
        """What the supervisor has running, by its names."""
        return {each.name: each.pid for each in self.state.recorded() if each.process.is_running()}

    def table(self) -> dict[int, Process]:
        """All living processes of this stack but `mpo up` itself."""
        return processes_in(self.state.root)

    def family(self, name: str) -> list[Process]:
        """The processes below one that the supervisor knows."""
        table, pid = self.table(), self.pids().get(name)
        return [table[each] for each in sorted(descendants(table, pid))] if pid else []

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Rows as named tuples; raises psycopg.OperationalError where the database is away."""
        with self.connect() as connection:
            found = connection.execute(statement.encode(), values)
            return found.fetchall() if found.description else []

    def connect(self) -> psycopg.Connection[Any]:
        """A connection that commits each statement."""
        host = str(postgres.socket_folder(Path((self.state.root / "sockets").read_text())))
        return psycopg.connect(
            host=host, user="postgres", dbname="postgres", connect_timeout=3, autocommit=True,
            options="-c timezone=utc -c statement_timeout=20000", row_factory=namedtuple_row,
        )  # fmt: skip

    def sweep(self) -> str:
        """What a sweep without any grace says, which asks that nobody uploads; raises CalledProcessError."""
        return self._run_as_worker("workers.sweep", "--grace-seconds", "0")

    def _run_as_worker(self, *module: str) -> str:
        pid = self.pids()["worker-cpu"]
        given = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        # Uploads that no dataset names wait for this one, whatever the command says.
        given.append("MPO_SWEEP_GRACE_SECONDS=0")
        command = ["env", "-i", *filter(None, given), sys.executable, "-m", *module]
        done = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, module, done.stdout, done.stderr)
        return done.stdout


def send(pid: int, number: int) -> bool:
    """Whether the signal found its process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
