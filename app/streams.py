"""ETag, 304 and long polls for every single object: one watcher a process reads for all who wait.

A route hands `Poll.answer` a function that reads a `Snapshot`: the view, the versions of the rows that it was
made from, and whether it can still change. What waits holds neither a session nor a thread.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import literal, select, union_all
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from core.database import open_session
from core.tables import Comparison, Dataset, Job, Run

LOOK_SECONDS = 0.2

Versioned = Dataset | Job | Run | Comparison
Watch = tuple[type[Versioned], str]
"""A row whose changes are waited for: its class and id."""
Wait = Annotated[
    float,
    Query(
        ge=0, le=60, allow_inf_nan=False, description="Seconds to hold the answer until the object changes."
    ),
]

POLLED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"description": "Changes with the object", "schema": {"type": "string"}}}},
    304: {"description": "The object is as If-None-Match says"},
}
"""OpenAPI's text of what every single object answers with."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A view, and how to notice that it is no longer true."""

    view: BaseModel
    versions: Mapping[Watch, int]
    finished: bool = False


def versions_of(*rows: Versioned) -> dict[Watch, int]:
    """What to watch of rows that a view was made from."""
    return {(type(row), row.id): row.version for row in rows}


@dataclass(eq=False)
class _Waiter:
    versions: Mapping[Watch, int]
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Watcher:
    """Reads the versions of all rows that somebody waits for, in one statement every `LOOK_SECONDS`."""

    def __init__(self) -> None:
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def wait(self, versions: Mapping[Watch, int], seconds: float) -> bool:
        """Until one of the rows has another version (then True), the time is up, or the server stops."""
        if self._stopping:
            return False
        waiter = _Waiter(versions)
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
            watched = {watch for waiter in self._waiters for watch in waiter.versions}
            try:
                now = await run_in_threadpool(_read_versions, watched)
            except SQLAlchemyError as error:
                # Whoever waits finds the same when the time is up; a short outage costs only a delay.
                logger.warning("cannot look at versions: %s", type(error).__name__)
            else:
                self._wake(watched, now)
            await asyncio.sleep(LOOK_SECONDS)

    def _wake(self, watched: set[Watch], now: Mapping[Watch, int]) -> None:
        for waiter in self._waiters:
            if any(w in watched and now.get(w) != version for w, version in waiter.versions.items()):
                waiter.changed.set()


def _read_versions(watched: set[Watch]) -> dict[Watch, int]:
    ids: dict[type[Versioned], list[str]] = {}
    for table, id_ in watched:
        ids.setdefault(table, []).append(id_)
    tables = list(ids)
    parts = [
        select(literal(number).label("number"), table.id, table.version).where(table.id.in_(ids[table]))
        for number, table in enumerate(tables)
    ]
    with open_session() as session:
        return {(tables[number], id_): version for number, id_, version in session.execute(union_all(*parts))}


@dataclass(frozen=True)
class _Answer:
    snapshot: Snapshot
    body: bytes
    etag: str


def _read(read: Callable[[Session], Snapshot]) -> _Answer:
    with open_session() as session:
        snapshot = read(session)
    body = snapshot.view.model_dump_json().encode()
    return _Answer(snapshot, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _matches(if_none_match: str | None, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag in tags


@dataclass(frozen=True)
class Poll:
    """What one request wants to know: since which ETag, and how long it waits for a change."""

    request: Request
    wait_seconds: float
    if_none_match: str | None

    async def answer(
        self,
        read: Callable[[Session], Snapshot],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        until_finished: bool = False,
    ) -> Response:
        """The object as `read` tells it, after waiting as asked: for a change, or until it has finished."""
        answer = await run_in_threadpool(_read, read)
        known = self.if_none_match is None or _matches(self.if_none_match, answer.etag)
        if self.wait_seconds and known:
            answer = await self._after_change(read, answer, until_finished)
        sent = {"ETag": answer.etag, "Cache-Control": "private, no-cache", **(headers or {})}
        if status == 200 and _matches(self.if_none_match, answer.etag):
            return Response(status_code=304, headers=sent)
        return Response(answer.body, status, sent, media_type="application/json")

    async def _after_change(
        self, read: Callable[[Session], Snapshot], first: _Answer, until_finished: bool
    ) -> _Answer:
        watcher: Watcher = self.request.app.state.watcher
        gone = asyncio.create_task(_gone(self.request))
        deadline, answer = time.monotonic() + self.wait_seconds, first
        try:
            while not answer.snapshot.finished and (until_finished or answer.etag == first.etag):
                seconds = deadline - time.monotonic()
                waiting = asyncio.create_task(watcher.wait(answer.snapshot.versions, max(seconds, 0)))
                try:
                    await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _end(waiting)
                if gone.done() or waiting.cancelled() or not waiting.result():
                    return answer
                answer = await run_in_threadpool(_read, read)
            return answer
        finally:
            await _end(gone)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _poll(
    request: Request, wait: Wait = 0.0, if_none_match: Annotated[str | None, Header()] = None
) -> Poll:
    return Poll(request, wait, if_none_match)


PollDep = Annotated[Poll, Depends(_poll)]
