"""A Postgres of our own: from a wheel, in a folder, reached by a Unix socket alone."""

import contextlib
import signal
import socket
from pathlib import Path
from urllib.parse import quote

import psycopg

from embedded import unprivileged
from embedded.errors import StateUnusable
from embedded.liveness import CannotTell
from embedded.processes import ProcessId, has_number, process_id, processes_within, program_name
from embedded.shipped import postgres_program
from embedded.supervisor import Program

NAME = "postgres"
INITDB_SECONDS = 60.0
READY_SECONDS = 60.0
_SUPERUSER = "postgres"
_DATABASE = "postgres"
_MAJOR_VERSION = "18"
_ORPHAN_SECONDS = 5.0
_SIGN_OF_LIFE_SECONDS = 15
"""Workers give one every two or three seconds."""


def socket_folder(sockets: Path) -> Path:
    return sockets / "pg"


def url(sockets: Path) -> str:
    """For SQLAlchemy."""
    host = quote(str(socket_folder(sockets)), safe="")
    return f"postgresql+psycopg://{_SUPERUSER}@/{_DATABASE}?host={host}"


def is_made(data: Path) -> bool:
    """Raises StateUnusable when another Postgres version made the folder's database."""
    version = data / "PG_VERSION"
    if not version.exists():
        return False
    made_by = version.read_text().strip()
    if made_by != _MAJOR_VERSION:
        raise StateUnusable(data, f"made by Postgres {made_by}, this one is Postgres {_MAJOR_VERSION}")
    return True


def initdb_program(data: Path, log: Path, environment: dict[str, str]) -> Program:
    """Makes the database; `is_made` afterwards. Works in the system's encoding and order on no machine."""
    unprivileged.own(data)
    command = unprivileged.command(
        postgres_program("initdb"),
        f"--pgdata={data}",
        f"--username={_SUPERUSER}",
        "--auth=trust",  # the sockets' folder is its owner's alone
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
    )
    return Program("initdb", command, environment, folder=data.parent, log=log)


def server_program(data: Path, sockets: Path, log: Path, environment: dict[str, str]) -> Program:
    folder = socket_folder(sockets)
    folder.mkdir(mode=0o700, exist_ok=True)
    unprivileged.own(folder)
    command = unprivileged.command(
        postgres_program("postgres"),
        "-D", str(data),
        "-k", str(folder),
        "-c", "listen_addresses=",
        "-c", "max_connections=200",
        "-c", "log_checkpoints=off",
        "-c", "shared_buffers=256MB",
        # A checkpoint makes every page that is written after it go to the log whole.
        "-c", "max_wal_size=2GB",
        "-c", "checkpoint_timeout=15min",
        # Its compiler costs short statements more than they take.
        "-c", "jit=off",
    )  # fmt: skip
    # SIGTERM would wait for every client to leave; SIGINT ends their sessions and stops cleanly.
    return Program(
        NAME,
        command,
        environment,
        folder=data.parent,
        log=log,
        stop_signal=signal.SIGINT,
        grace_seconds=20.0,
        answers=lambda _: speaks(sockets),
        prepare=lambda: clear_remains(data),
    )


def is_ready(sockets: Path) -> bool:
    return _refusal(sockets) is None


def speaks(sockets: Path) -> bool:
    """Whether a server answers at all, be it by a refusal: killed, one that still replays its log, which may
    take minutes, would begin anew, and one with too many clients would lose them all. One that shuts down and
    does not end, since a client stays, never comes back by itself.
    """
    refusal = _refusal(sockets)
    return refusal is None or ("FATAL:" in refusal and "shutting down" not in refusal)


def _refusal(sockets: Path) -> str | None:
    """What a new connection is told, or what keeps it from a server; None where it is made."""
    try:
        host = str(socket_folder(sockets))
        psycopg.connect(host=host, user=_SUPERUSER, dbname=_DATABASE, connect_timeout=2).close()
    except psycopg.OperationalError as error:
        return str(error)
    return None


def has_heard_of(sockets: Path, pid: int) -> bool:
    """Whether the worker of this pid on this machine has given a sign of life lately; raises CannotTell."""
    lately = "SELECT seen_at > clock_timestamp() - %s::interval FROM workers WHERE pid = %s AND host = %s"
    try:
        with psycopg.connect(
            host=str(socket_folder(sockets)),
            user=_SUPERUSER,
            dbname=_DATABASE,
            connect_timeout=2,
            options="-c statement_timeout=2000",
        ) as connection:
            found = connection.execute(
                lately, (f"{_SIGN_OF_LIFE_SECONDS} s", pid, socket.gethostname())
            ).fetchall()
    except psycopg.Error as error:
        raise CannotTell from error
    return (True,) in found


def clear_remains(data: Path) -> None:
    """After a server that was killed: what keeps the next one out of its data."""
    _remove_stale_pid_file(data)
    if leftover(data) is None:
        # Its sessions end by themselves when they notice, which one that is busy or frozen does not: until
        # then they hold the shared memory, and no server starts.
        for orphan in processes_within(data, NAME):
            orphan.send(signal.SIGKILL)
            orphan.wait(_ORPHAN_SECONDS)


def leftover(data: Path) -> ProcessId | None:
    """The server that still runs on this data though nobody recorded it."""
    pid = _pid_in_file(data)
    return process_id(pid) if pid and program_name(pid) == NAME else None


def _pid_in_file(data: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((data / "postmaster.pid").read_text().splitlines()[0])
    return None


def _remove_stale_pid_file(data: Path) -> None:
    """Postgres takes whatever has that number for a server: after a reboot often another program, and after a
    kill -9 its own zombie, where the first process of a container is slow to wait for orphans.
    """
    pid = _pid_in_file(data)
    if pid and program_name(pid) != NAME and has_number(pid):
        (data / "postmaster.pid").unlink()
