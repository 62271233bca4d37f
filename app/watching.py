"""Waiting for changes: one watcher a process looks on for all who wait."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.marks import Mark, Watch, read_marks
from core.database import open_session

LOOK_SECONDS = 0.2

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiter:
    watch: Watch
    changes: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Watcher:
    """Reads the marks of all that somebody waits for, in one statement every `LOOK_SECONDS`."""

    def __init__(self) -> None:
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def wait(self, watch: Watch, changes: str, seconds: float) -> bool:
        """Until the object has changed since then (then True), the time is up, or the server stops."""
        if self._stopping:
            return False
        waiter = _Waiter(watch, changes)
        self._waiters.add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_on())
        try:
            await asyncio.wait_for(waiter.changed.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return not self._stopping

    def let_go(self) -> None:
        """The server is to stop: who waits is answered at once, and nobody waits any more."""
        self._stopping = True
        for waiter in self._waiters:
            waiter.changed.set()

    async def stop(self) -> None:
        """End the task too."""
        self.let_go()
        if self._task is not None:
            # Not cancelled: its thread would go on and keep a connection.
            await asyncio.wait({self._task})
            self._task = None

    async def _look_on(self) -> None:
        while self._waiters and not self._stopping:
            watched = {waiter.watch for waiter in self._waiters}
            try:
                now = await run_in_threadpool(_look, watched)
            except SQLAlchemyError as error:
                # Whoever waits finds the same when the time is up; a short outage costs only a delay.
                logger.warning("cannot look at marks: %s", type(error).__name__)
            else:
                self._wake(watched, now)
            await asyncio.sleep(LOOK_SECONDS)

    def _wake(self, watched: set[Watch], now: Mapping[Watch, Mark]) -> None:
        for waiter in self._waiters:
            mark = now.get(waiter.watch)
            if waiter.watch in watched and (mark is None or mark.changes != waiter.changes):
                waiter.changed.set()


def _look(watched: set[Watch]) -> dict[Watch, Mark]:
    with open_session() as session:
        return read_marks(session, watched, places=False)
