"""The process that children are forked from, its imports done; started anew where it died or hangs."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from threading import Timer
from typing import Any

from workers.guard import Guard

START_WITHIN_SECONDS = 60.0
"""A fork server imports for some seconds before its first child; one that takes longer is stuck."""
REAP_SECONDS = 10.0
PRELOAD = {
    "cpu": ["workers.deaf_server", "workers.child_main", "mpo.dataset_files"],
    "gpu": ["workers.deaf_server", "workers.training_imports"],
}

context = multiprocessing.get_context("forkserver")


class ForkServerGone(Exception):
    """No child could be started: the run is not at fault, and goes back to the queue."""


@cache
def guard() -> Guard:
    """This worker's guard, started at the first call."""
    return Guard()


def start_fork_server(slot: str) -> None:
    """Import what this slot class needs, once, in the process that children are forked from."""
    context.set_forkserver_preload(PRELOAD[slot])
    forkserver.ensure_running()
    _watch_fork_server()


def stop_fork_server() -> None:
    """At the end of the worker, also while it still imports; the guard goes with it."""
    _kill_fork_server()
    guard().close()
    guard.cache_clear()


def start_child(main: Callable[..., None], make: Callable[[], tuple[Any, ...]]) -> ForkServerProcess:
    """A child that runs main(*make()); raises ForkServerGone.

    `make` is called for each attempt: where the fork server died after it had forked, an earlier attempt's
    child may be there, and must be left without a pipe.
    """
    try:
        return _start_once(main, make())
    except (OSError, EOFError):
        # The server was killed, or hung; the next attempt starts another once this one is seen to be dead.
        _kill_fork_server()
        try:
            return _start_once(main, make())
        except (OSError, EOFError) as error:
            raise ForkServerGone(f"{type(error).__name__}: {error}") from error


def reap(process: ForkServerProcess) -> None:
    """Wait for a child that was killed. Its fork server tells; one that does not is frozen, and replaced."""
    process.join(REAP_SECONDS)
    if process.exitcode is None:
        _kill_fork_server()
        process.join()


def _start_once(main: Callable[..., None], arguments: tuple[Any, ...]) -> ForkServerProcess:
    process = context.Process(target=main, args=arguments)
    watchdog = Timer(START_WITHIN_SECONDS, _kill_fork_server)
    watchdog.daemon = True
    watchdog.start()
    try:
        process.start()
    finally:
        watchdog.cancel()
        for given in arguments:
            if isinstance(given, Connection):
                given.close()
    _watch_fork_server()
    assert process.pid is not None
    guard().watch(process.pid)
    return process


def _fork_server_pid() -> int | None:
    # The standard library keeps it to itself; nothing else tells which of our children it is.
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def _watch_fork_server() -> None:
    if (pid := _fork_server_pid()) is not None:
        guard().watch(pid)


def _kill_fork_server() -> None:
    if (pid := _fork_server_pid()) is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            # Its end stays to be found by the standard library, which starts another only then.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
