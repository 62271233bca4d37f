"""Keeps a set of processes running until it is told to stop. Knows nothing of what they are."""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from embedded.errors import NotReadyInTime, ProgramFailed
from embedded.liveness import LOOK_SECONDS, PATIENCE_SECONDS, Answers, Liveness
from embedded.processes import process_id
from embedded.state import Recorded

_log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0
HEALTHY_SECONDS = 30.0
# This many ends in a row while the start waits for a program: it will not come up.
HOPELESS_CRASHES = 3
_POLL_SECONDS = 0.05
_LONGEST_LOG_BYTES = 10 << 20
_SHOWN_LOG_BYTES = 4000
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopAsked(Exception):
    """Not an error: a signal to stop came while something was being waited for."""


@dataclass(frozen=True)
class Program:
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    tier: int = 0
    """Those of a tier stop together; a higher tier stops first, since it uses the lower ones."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    answers: Answers | None = None
    """Whether it does its work; None: it does as long as it runs."""
    prepare: Callable[[], None] | None = None
    """Before each start."""


@dataclass
class _Supervised:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: str = ""
    began_at: float = 0.0
    delay_seconds: float = FIRST_DELAY_SECONDS
    start_again_at: float | None = None
    crashes: int = 0

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Supervisor:
    """Use within `listening()`, on the main thread: signals arrive nowhere else."""

    record: Callable[[list[Recorded]], None]
    _supervised: dict[str, _Supervised] = field(default_factory=dict)
    _stop_asked: bool = False
    _wakeup: socket.socket | None = None
    _liveness: Liveness = field(default_factory=Liveness)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Children's ends and signals to stop wake this process; all is as before when the block ends."""
        self._wakeup, waker = socket.socketpair()
        with self._wakeup, waker:
            self._wakeup.setblocking(False)
            waker.setblocking(False)
            handlers: dict[signal.Signals, Callable[[int, object], None]] = {
                number: self._on_stop for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN
            }
            # Without a handler of Python's, the end of a child would not reach the wakeup socket.
            handlers[signal.SIGCHLD] = lambda *_: None
            previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
            previous_wakeup = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(previous_wakeup)
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def start(self, program: Program) -> None:
        """From now on the program runs, again and again, until `stop`."""
        supervised = _Supervised(program)
        self._supervised[program.name] = supervised
        self._spawn(supervised)

    def run(self, program: Program, seconds: float) -> None:
        """The program once, to its end.

        Raises ProgramFailed when it ends badly, NotReadyInTime when it takes too long, StopAsked.
        """
        once = _Supervised(program)
        self._spawn(once)
        self._record(once)
        try:
            self._wait(lambda: not once.is_running, once, seconds)
        finally:
            self._signal(once)
            self._kill_at_end_of_grace([once])
            self._record()
        assert once.process is not None
        if once.process.returncode != 0:
            raise ProgramFailed(
                program.name, _ending(once.process.returncode), program.log, _end_of(program.log)
            )

    def wait_until(self, ready: Callable[[], bool], name: str, seconds: float) -> None:
        """Waits for a condition that the named program brings about, and meanwhile restarts what dies.

        Raises ProgramFailed when the program dies again and again, NotReadyInTime, StopAsked.
        """
        self._wait(ready, self._supervised[name], seconds)

    def serve(self) -> None:
        """Returns when a signal asks to stop."""
        self._liveness.start()
        while not self._stop_asked:
            self._look()
            self._end_the_silent()
            self._sleep(self._until_next_look())

    def stop(self) -> None:
        """Tier by tier, highest first; what is left at the end of its grace is killed."""
        self._liveness.stop()
        for tier in sorted({each.program.tier for each in self._supervised.values()}, reverse=True):
            leaving = [each for each in self._supervised.values() if each.program.tier == tier]
            for each in reversed(leaving):
                self._signal(each)
            self._kill_at_end_of_grace(leaving)
        self._supervised.clear()
        self._record()

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stop_asked = True

    def _wait(self, condition: Callable[[], bool], of: _Supervised, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._stop_asked:
                raise StopAsked
            self._look()
            log = of.program.log
            if of.crashes >= HOPELESS_CRASHES:
                raise ProgramFailed(of.program.name, f"ended {of.crashes} times", log, _end_of(log))
            if time.monotonic() > deadline:
                raise NotReadyInTime(of.program.name, seconds, log, _end_of(log))
            self._sleep(_POLL_SECONDS)

    def _look(self) -> None:
        """Plans the restart of what has ended, starts what is due."""
        now = time.monotonic()
        for each in self._supervised.values():
            if each.start_again_at is not None:
                if now >= each.start_again_at:
                    self._start_again(each)
            elif not each.is_running:
                self._plan_restart(each, now)

    def _end_the_silent(self) -> None:
        for each in self._supervised.values():
            if each.is_running and self._liveness.silent_seconds(each.program.name) > PATIENCE_SECONDS:
                _log.warning("%s runs but does not answer; it is killed", each.program.name)
                self._kill(each)

    def _plan_restart(self, ended: _Supervised, now: float) -> None:
        assert ended.process is not None
        if now - ended.began_at >= HEALTHY_SECONDS:
            ended.delay_seconds, ended.crashes = FIRST_DELAY_SECONDS, 0
        _log.warning(
            "%s %s; starts again in %.1f s; log: %s",
            ended.program.name, _ending(ended.process.returncode), ended.delay_seconds, ended.program.log,
        )  # fmt: skip
        self._kill(ended)
        ended.start_again_at = now + ended.delay_seconds
        ended.delay_seconds = min(2 * ended.delay_seconds, LONGEST_DELAY_SECONDS)
        ended.crashes += 1

    def _start_again(self, ended: _Supervised) -> None:
        """A full disk, or too many processes, are no reason to end the others: it is tried again later."""
        try:
            self._spawn(ended)
        except OSError as error:
            _log.warning("%s cannot be started: %s", ended.program.name, error)
            ended.start_again_at = time.monotonic() + LONGEST_DELAY_SECONDS

    def _spawn(self, supervised: _Supervised) -> None:
        program = supervised.program
        if program.prepare is not None:
            program.prepare()
        _bound(program.log)
        with program.log.open("ab") as log:
            # A session of its own: Ctrl-C in a terminal is for the supervisor, which stops all in order.
            supervised.process = subprocess.Popen(
                program.command, env=dict(program.environment), cwd=program.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        identity = process_id(supervised.process.pid)
        supervised.started = identity.started if identity else ""
        supervised.began_at, supervised.start_again_at = time.monotonic(), None
        if program.answers is not None:
            self._liveness.watch(program.name, supervised.process.pid, program.answers)
        self._record()

    def _record(self, *also: _Supervised) -> None:
        running = [
            Recorded(
                name=each.program.name,
                stop_signal=int(each.program.stop_signal),
                grace_seconds=each.program.grace_seconds,
                pid=each.process.pid,
                started=each.started,
            )
            for each in (*self._supervised.values(), *also)
            if each.process is not None and each.process.returncode is None
        ]
        try:
            self.record(running)
        except OSError as error:
            # The next one tells it all again.
            _log.warning("what runs cannot be recorded: %s", error)

    def _until_next_look(self) -> float:
        due = [each.start_again_at for each in self._supervised.values() if each.start_again_at is not None]
        return min(LOOK_SECONDS, *(max(0.0, at - time.monotonic()) for at in due), LOOK_SECONDS)

    def _sleep(self, seconds: float) -> None:
        """Until a child ends, a signal comes or the time is over."""
        assert self._wakeup is not None, "use the supervisor within listening()"
        if select.select([self._wakeup], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)

    def _kill_at_end_of_grace(self, leaving: list[_Supervised]) -> None:
        asked_at = time.monotonic()
        while leaving:
            for each in leaving:
                if not each.is_running:
                    self._kill(each)
                elif time.monotonic() - asked_at > each.program.grace_seconds:
                    _log.warning("%s did not stop in time and is killed", each.program.name)
                    self._kill(each)
            leaving = [each for each in leaving if each.is_running]
            if leaving:
                self._sleep(_POLL_SECONDS)

    @staticmethod
    def _signal(supervised: _Supervised) -> None:
        if supervised.is_running:
            assert supervised.process is not None
            supervised.process.send_signal(supervised.program.stop_signal)

    @staticmethod
    def _kill(supervised: _Supervised) -> None:
        """The process, and what it leaves in its group: nothing of an ended program is to run on."""
        process = supervised.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(return_code: int) -> str:
    if return_code < 0:
        return f"was ended by {signal.Signals(-return_code).name}"
    return f"ended with status {return_code}"


def _bound(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LONGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SHOWN_LOG_BYTES))
        return file.read().decode(errors="replace").strip()
