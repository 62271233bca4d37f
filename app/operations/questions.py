"""Questions whose answer may never come: to a frozen database, a store on a network that is gone.

Each is asked on a thread of its own, one at a time: who asks waits for a bounded time, and whoever comes
meanwhile waits for the same answer. Threads of requests, which may all be stuck, are not needed.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Lock, Thread
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """None yet; `seconds` since it was asked."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"has not answered for {seconds:.0f} s")


class Question(Generic[Answer]):
    """A function that is called at most once at a time, its answer kept for a moment."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._ask, self._lock = ask, Lock()
        self._asked: Future[Answer] | None = None
        self._asked_at = 0.0

    async def answer(self, *, within_seconds: float, kept_seconds: float) -> Answer:
        """The answer, or its exception; raises NoAnswer when the time is up."""
        asked = asyncio.wrap_future(self._begin(kept_seconds))
        # Who has given up by then does not hear an error: asyncio would log it, with its text.
        asked.add_done_callback(_hear)
        await asyncio.wait({asked}, timeout=within_seconds)
        if not asked.done():
            raise NoAnswer(time.monotonic() - self._asked_at)
        return asked.result()

    def _begin(self, kept_seconds: float) -> "Future[Answer]":
        with self._lock:
            asked, age = self._asked, time.monotonic() - self._asked_at
            if asked is None or (asked.done() and age > kept_seconds):
                asked = self._asked = Future()
                # Not to be cancelled by one of those who wait for it.
                asked.set_running_or_notify_cancel()
                self._asked_at = time.monotonic()
                work = copy_context().run
                thread = Thread(target=work, args=(_answer, self._ask, asked), name="question", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The system has no thread left: else this question would wait for its answer for ever.
                    asked.set_exception(NoAnswer(0.0))
            return asked


def _answer(ask: Callable[[], Answer], asked: "Future[Answer]") -> None:
    try:
        asked.set_result(ask())
    except Exception as error:  # a border: it is raised again for who asked
        asked.set_exception(error)


def _hear(asked: "asyncio.Future[Answer]") -> None:
    if not asked.cancelled():
        asked.exception()
