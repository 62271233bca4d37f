"""Asks programs whether they still do their work: one that is frozen runs, and serves nobody."""

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread

_log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 20.0
"""This long without one good answer, and a program is ended. Far above what a busy machine costs."""
START_PATIENCE_SECONDS = 60.0

Answers = Callable[[int], bool]
"""Whether the program of this pid does its work; raises CannotTell. Returns within a few seconds."""


class CannotTell(Exception):
    """What would know it is away itself: no reason to end anything."""


class Liveness:
    """Asks on a thread of its own, since who does not answer is waited for."""

    def __init__(self) -> None:
        self._lock, self._ended = Lock(), Event()
        self._asked: dict[str, tuple[int, Answers, float]] = {}
        self._failing_since: dict[str, float] = {}
        self._thread = Thread(target=self._work, name="liveness", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()

    def watch(self, name: str, pid: int, answers: Answers) -> None:
        """The program has been started, perhaps again."""
        with self._lock:
            self._asked[name] = pid, answers, time.monotonic()
            self._failing_since.pop(name, None)

    def silent_seconds(self, name: str) -> float:
        """How long a program has given no good answer; 0 while it may still be starting."""
        now = time.monotonic()
        with self._lock:
            since = self._failing_since.get(name)
            if since is None or now - self._asked[name][2] < START_PATIENCE_SECONDS:
                return 0.0
        return now - since

    def _work(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self._lock:
                asked = dict(self._asked)
            for name, (pid, answers, _) in asked.items():
                good = _ask(answers, pid)
                with self._lock:
                    if self._asked[name][0] != pid:
                        continue
                    if good:
                        self._failing_since.pop(name, None)
                    else:
                        self._failing_since.setdefault(name, time.monotonic())


def _ask(answers: Answers, pid: int) -> bool:
    try:
        return answers(pid)
    except CannotTell:
        return True
    except Exception:  # a border: a question that fails must not end the questions
        _log.exception("cannot ask")
        return True
