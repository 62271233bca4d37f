"""The folder that holds all of a stack's state: its layout, its lock, its key, its processes."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from embedded.errors import AlreadyRunning, StateUnusable
from embedded.processes import ProcessId, process_id

# sun_path of a Unix socket's address: 108 bytes on Linux, 104 on macOS, its closing zero included.
_LONGEST_SOCKET_PATH = 103
_LONGEST_SOCKET_NAME = "pg/.s.PGSQL.5432"


@dataclass(frozen=True)
class Recorded:
    """A process that a stack started, as `processes.json` names it."""

    name: str
    stop_signal: int
    grace_seconds: float
    pid: int
    started: str

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.started)


@dataclass(frozen=True)
class StateFolder:
    root: Path

    @classmethod
    def at(cls, folder: Path) -> "StateFolder":
        """The folder, made if need be, readable by its owner alone: its sockets ask for no password."""
        root = folder.expanduser().resolve()
        state = cls(root)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (state.store, state.models, state.scratch, state.logs, state.valkey, state.postgres):
                part.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateUnusable(root, error.strerror or str(error)) from error
        return state

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a stack was ever started in the folder."""
        return (folder.expanduser() / "lock").exists()

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def models(self) -> Path:
        """A folder for each base model that was added to this stack."""
        return self.root / "models"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def api_key_file(self) -> Path:
        return self.root / "api-key"

    @property
    def url_file(self) -> Path:
        """Where the stack answers, for clients that are given the folder; there while it runs."""
        return self.root / "url"

    @property
    def _lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def _processes_file(self) -> Path:
        return self.root / "processes.json"

    @property
    def _sockets_file(self) -> Path:
        return self.root / "sockets"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. The kernel lets go however it ends, so no lock outlives a crash.

        Raises AlreadyRunning.
        """
        with self._lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self.holder()
                raise AlreadyRunning(self.root, holder.pid if holder else None) from None
            file.truncate(0)
            json.dump(asdict(_this_process()), file)
            file.flush()
            yield

    def is_locked(self) -> bool:
        try:
            with self._lock_file.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def holder(self) -> ProcessId | None:
        """The process that last took the lock; whether it still has it, `is_locked` tells."""
        try:
            return ProcessId(**json.loads(self._lock_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def api_key(self) -> str:
        """The stack's admin key: made once, then read."""
        if not self.api_key_file.exists():
            write_whole(self.api_key_file, f"mpo_sk_{secrets.token_urlsafe(32)}\n")
        return self.api_key_file.read_text().strip()

    def record_url(self, url: str | None) -> None:
        """Where the stack answers now; None: nowhere."""
        if url is None:
            self.url_file.unlink(missing_ok=True)
        else:
            write_whole(self.url_file, f"{url}\n")

    def url(self) -> str | None:
        """Where the stack that runs in the folder answers; None where none does."""
        return self.url_file.read_text().strip() if self.url_file.exists() else None

    def record(self, processes: list[Recorded]) -> None:
        write_whole(self._processes_file, json.dumps([asdict(each) for each in processes], indent=1))

    def recorded(self) -> list[Recorded]:
        """What the last `mpo up` had running, in the order of its start."""
        try:
            return [Recorded(**each) for each in json.loads(self._processes_file.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def empty_scratch(self) -> None:
        """Takes away what killed workers left; only while none runs."""
        for left in self.scratch.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()

    def fresh_sockets(self) -> Path:
        """An empty folder for sockets, within the state folder where its path is short enough for them."""
        self.remove_sockets()
        inside = self.root / "run"
        if len(os.fsencode(inside / _LONGEST_SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
            inside.mkdir(mode=0o700)
            folder = inside
        else:
            folder = Path(tempfile.mkdtemp(prefix="mpo-", dir=_short_temporary_folder()))
        write_whole(self._sockets_file, str(folder))
        return folder

    def remove_sockets(self) -> None:
        if self._sockets_file.exists():
            shutil.rmtree(self._sockets_file.read_text(), ignore_errors=True)
            self._sockets_file.unlink()
        shutil.rmtree(self.root / "run", ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Readable by its owner alone, and never half there, whenever this process is killed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _short_temporary_folder() -> Path:
    usual = Path(tempfile.gettempdir())
    name_length = len("/mpo-12345678/") + len(_LONGEST_SOCKET_NAME)
    return usual if len(os.fsencode(usual)) + name_length <= _LONGEST_SOCKET_PATH else Path("/tmp")  # noqa: S108  # mkdtemp makes the folder private


def _this_process() -> ProcessId:
    this = process_id(os.getpid())
    assert this is not None
    return this
