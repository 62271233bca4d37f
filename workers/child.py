"""run_in_child: one unit of work in a process group of its own, forked from a server with the imports done.

One pipe carries reports to the worker; a second one, of which only the worker holds the writing end, tells
the child by its end that the worker is gone.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from threading import Event, Thread
from types import TracebackType

from workers.child_main import main
from workers.child_protocol import Checkpointed, ChildTask, Crashed, Done, Failed, Outcome, Report, Stopped
from workers.fork_server import context, guard, reap, start_child

KILL_AFTER_SECONDS = 1.5
"""A worker learns of it by a renewal, one every three seconds: so a cancelled child is gone within five."""
STOP_WITHIN_SECONDS = 25.0
ASK_AGAIN_SECONDS = 1.0
POLL_SECONDS = 0.1
EXIT_SECONDS = 5.0


def run_in_child(
    task: ChildTask, on_report: Callable[[Report], None], abort: Callable[[], bool], stop: Callable[[], bool]
) -> Outcome | None:
    """Run a task to its end; None where it was aborted. Raises ForkServerGone: no child could be started.

    abort: kill the group, SIGTERM first. stop: ask the child to save a checkpoint and end.
    """
    with contextlib.ExitStack() as pipes:
        ours: Connection | None = None

        def make() -> tuple[ChildTask, Connection, Connection]:
            nonlocal ours
            pipes.close()
            ours, theirs = context.Pipe()
            life_theirs, life_ours = context.Pipe(duplex=False)
            # A child that had not made its group yet ends by the end of its life pipe.
            pipes.callback(ours.close)
            pipes.callback(life_ours.close)
            return task, theirs, life_theirs

        process = start_child(main, make)
        assert ours is not None
        try:
            with _Ending(process, abort, stop):
                outcome = _listen(process, ours, on_report)
        finally:
            # Whatever is left of the group goes: a data loader must not outlive its run.
            _signal_group(process, signal.SIGKILL)
            pipes.close()
            reap(process)
            guard().forget(process.pid or 0)
            process.close()
    if isinstance(outcome, Done | Failed):
        return outcome
    return None if abort() else Stopped() if stop() else outcome


def _listen(process: ForkServerProcess, pipe: Connection, on_report: Callable[[Report], None]) -> Outcome:
    while True:
        # The end of the process counts too: a grandchild may hold its end of the pipe open.
        ready = connection.wait([pipe, process.sentinel])
        try:
            report = pipe.recv() if pipe in ready else None
        except (EOFError, OSError):
            report = None
        if report is None:
            process.join(EXIT_SECONDS)
            return Crashed(process.exitcode)
        if isinstance(report, Done | Stopped | Failed):
            return report
        on_report(report)
        if isinstance(report, Checkpointed):
            # A child that died meanwhile is noticed by the next look at the pipe, as a crash.
            with contextlib.suppress(OSError):
                pipe.send(None)


class _Ending:
    """Ends the group when it is asked for, on a thread: a worker that stores a checkpoint does not listen."""

    def __init__(
        self, process: ForkServerProcess, abort: Callable[[], bool], stop: Callable[[], bool]
    ) -> None:
        self._process, self._abort, self._stop = process, abort, stop
        self._listened = Event()
        self._thread = Thread(target=self._watch, name=f"ending {process.pid}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listened.set()
        self._thread.join()

    def _watch(self) -> None:
        kill_at = ask_at = float("inf")
        while not self._listened.wait(POLL_SECONDS):
            now = time.monotonic()
            if kill_at == float("inf") and (self._abort() or self._stop()):
                kill_at, ask_at = now + STOP_WITHIN_SECONDS, now
            if self._abort():
                # Also a child that was asked to stop first.
                kill_at = min(kill_at, now + KILL_AFTER_SECONDS)
            if now >= kill_at or connection.wait([self._process.sentinel], 0):
                # Grandchildren too: one that holds the pipe would keep the worker listening.
                _signal_group(self._process, signal.SIGKILL)
                return
            if now >= ask_at:
                # Again and again: the first may have come before the child had made its group.
                _signal_group(self._process, signal.SIGTERM)
                ask_at = now + ASK_AGAIN_SECONDS


def _signal_group(process: ForkServerProcess, number: int) -> None:
    if process.pid is None:
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # gone already, or not yet a group leader: then it has done nothing
    except PermissionError:
        return  # a zombie's group on some systems
