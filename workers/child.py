"""run_in_child: one unit of work in a process group of its own, forked from a server with the imports done.

One pipe carries reports to the worker; a second one, of which only the worker holds the writing end, tells
the child by its end that the worker is gone.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection

from workers.child_main import main
from workers.child_protocol import Checkpointed, ChildTask, Crashed, Done, Failed, Outcome, Report, Stopped

KILL_AFTER_SECONDS = 2.0
STOP_WITHIN_SECONDS = 25.0
POLL_SECONDS = 0.1
PRELOAD = {"cpu": ["workers.child_main", "mpo.dataset_files"], "gpu": ["workers.training_imports"]}

_context = multiprocessing.get_context("forkserver")


def start_fork_server(slot: str) -> None:
    """Import what this slot class needs, once, in the process that children are forked from."""
    _context.set_forkserver_preload(PRELOAD[slot])
    forkserver.ensure_running()


def run_in_child(
    task: ChildTask, on_report: Callable[[Report], None], abort: Callable[[], bool], stop: Callable[[], bool]
) -> Outcome | None:
    """Run a task to its end; None where it was aborted.

    abort: kill the group, SIGTERM first. stop: ask the child to save a checkpoint and end.
    """
    ours, theirs = _context.Pipe()
    life_theirs, life_ours = _context.Pipe(duplex=False)
    process = _context.Process(target=main, args=(task, theirs, life_theirs))
    process.start()
    theirs.close()
    life_theirs.close()
    try:
        return _listen(process, ours, on_report, abort, stop)
    finally:
        # Whatever is left of the group goes: a data loader must not outlive its run.
        _signal_group(process.pid, signal.SIGKILL)
        # A child that had not made its group yet ends by this.
        life_ours.close()
        process.join()
        ours.close()
        process.close()


def _listen(
    process: "multiprocessing.context.ForkServerProcess",
    pipe: Connection,
    on_report: Callable[[Report], None],
    abort: Callable[[], bool],
    stop: Callable[[], bool],
) -> Outcome | None:
    kill_at = float("inf")
    while True:
        if kill_at == float("inf") and (abort() or stop()):
            _signal_group(process.pid, signal.SIGTERM)
            kill_at = time.monotonic() + STOP_WITHIN_SECONDS
        if abort():
            # Also a child that was asked to stop first.
            kill_at = min(kill_at, time.monotonic() + KILL_AFTER_SECONDS)
        if time.monotonic() > kill_at:
            return None if abort() else Stopped()
        if not pipe.poll(POLL_SECONDS):
            continue
        try:
            report = pipe.recv()
        except (EOFError, OSError):
            process.join()
            if abort() or stop():
                return None if abort() else Stopped()
            return Crashed(process.exitcode)
        if isinstance(report, Done | Stopped | Failed):
            return report
        on_report(report)
        if isinstance(report, Checkpointed):
            # A child that died meanwhile is noticed by the next look at the pipe, as a crash.
            with contextlib.suppress(OSError):
                pipe.send(None)


def _signal_group(pid: int | None, number: int) -> None:
    if pid is None:
        return
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # gone already, or not yet a group leader: then it has done nothing
    except PermissionError:
        return  # a zombie's group on some systems
