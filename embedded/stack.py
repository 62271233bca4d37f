"""A whole stack: what is started in which order, and stopped."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from embedded import postgres, valkey
from embedded.errors import PortTaken, StillRunning
from embedded.services import API, HOST, MIGRATE_SECONDS, READY_SECONDS, Services, inherited_environment
from embedded.state import StateFolder
from embedded.supervisor import StopAsked, Supervisor
from embedded.watchman import stop_in_reverse, watched

_DOWN_SECONDS = 120.0
_POLL_SECONDS = 0.05


def up(folder: Path, port: int, on_ready: Callable[[str], None]) -> None:
    """Starts a stack in the folder, tells its URL once it answers, serves until a signal to stop.

    Raises StackError: another `mpo up` has the folder, the port is taken, something does not start.
    """
    state = StateFolder.at(folder)
    with state.locked():
        stop_leftovers(state)
        state.record_url(None)
        state.empty_scratch()
        port = _free_port(port)
        supervisor = Supervisor(state.record)
        with watched(state), supervisor.listening():
            try:
                _start(supervisor, state, port)
                url = f"http://{HOST}:{port}"
                state.record_url(url)
                on_ready(url)
                supervisor.serve()
            except StopAsked:
                pass  # how serving ends: by SIGTERM, Ctrl-C or `mpo down`
            finally:
                state.record_url(None)
                supervisor.stop()
                state.remove_sockets()


def down(folder: Path) -> bool:
    """Stops what runs in the folder and waits until it is gone; False when nothing runs there.

    Raises StillRunning.
    """
    if not StateFolder.is_one(folder):
        return False
    state = StateFolder.at(folder)
    if not state.is_locked():
        with state.locked():
            return stop_leftovers(state)
    deadline = time.monotonic() + _DOWN_SECONDS
    told = None
    while state.is_locked():
        holder = state.holder()
        # Between taking the lock and writing its name there, the holder is still the one before.
        if holder and holder != told and holder.is_running():
            holder.send(signal.SIGTERM)
            told = holder
        if time.monotonic() > deadline:
            raise StillRunning(told.pid if told else 0, _DOWN_SECONDS)
        time.sleep(_POLL_SECONDS)
    return True


def stop_leftovers(state: StateFolder) -> bool:
    """Stops what a killed `mpo up` left running; whether there was any. The folder's lock must be held."""
    left = [each for each in state.recorded() if each.process.is_running()]
    stop_in_reverse(left)
    unrecorded = postgres.leftover(state.postgres)
    if unrecorded:
        unrecorded.send(signal.SIGINT)
        unrecorded.wait(20.0)
    state.record([])
    state.record_url(None)
    state.remove_sockets()
    return bool(left or unrecorded)


def _start(supervisor: Supervisor, state: StateFolder, port: int) -> None:
    sockets = state.fresh_sockets()
    _start_servers(supervisor, state, sockets)
    services = Services(state, sockets, port, cores=_cores())
    # Its imports take as long as the migrations, and need no database.
    supervisor.start(services.api())
    supervisor.run(services.migrate(), MIGRATE_SECONDS)
    supervisor.run(services.bootstrap(), MIGRATE_SECONDS)
    supervisor.wait_until(services.is_healthy, API, READY_SECONDS)
    for program in services.workers():
        supervisor.start(program)


def _start_servers(supervisor: Supervisor, state: StateFolder, sockets: Path) -> None:
    environment = inherited_environment()
    log = state.log(postgres.NAME)
    supervisor.start(valkey.server_program(state.valkey, sockets, state.log(valkey.NAME), environment))
    if not postgres.is_made(state.postgres):
        supervisor.run(postgres.initdb_program(state.postgres, log, environment), postgres.INITDB_SECONDS)
    supervisor.start(postgres.server_program(state.postgres, sockets, log, environment))
    supervisor.wait_until(lambda: postgres.is_ready(sockets), postgres.NAME, postgres.READY_SECONDS)
    supervisor.wait_until(lambda: valkey.is_ready(sockets), valkey.NAME, valkey.READY_SECONDS)


def _free_port(asked: int) -> int:
    """The port asked for, if it is free; for 0 any free one. Raises PortTaken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As uvicorn binds: connections of the server before, still closing, are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, asked))
        except OSError as error:
            raise PortTaken(asked) from error
        port: int = probe.getsockname()[1]
        return port


def _cores() -> int:
    """Those that this process may use: a container's share is often smaller than the machine."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
