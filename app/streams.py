"""ETag, 304 and long polls for every single object: one reader and one watcher a process for all who ask.

A route hands `Poll.answer` a `Subject`, whose mark tells when it has changed, and a function that makes the
view: it is called only where the client has to be sent one that this process does not have at hand. What
waits holds neither a session nor a thread.
"""

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.marks import Mark, MarkedNoun, Marks, Watch, read_marks
from app.watching import Watcher
from core.database import open_session
from core.errors import NotFound

KEPT_BYTES = 16 << 20
"""Of answers that this process keeps at hand."""

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


@dataclass(frozen=True)
class Subject:
    """What is asked for, by whom, and the kind of view that is given of it."""

    noun: MarkedNoun
    id: str
    owner: str
    view: type[BaseModel]

    @property
    def watch(self) -> Watch:
        """What tells of its changes."""
        return self.noun, self.id


class Bodies:
    """Answers by subject and ETag, the last used ones up to `KEPT_BYTES`. For the event loop alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Watch, str], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, watch: Watch, etag: str) -> bytes | None:
        """What was answered under this ETag, where it is still at hand."""
        if (body := self._kept.get((watch, etag))) is not None:
            self._kept.move_to_end((watch, etag))
        return body

    def keep(self, watch: Watch, etag: str, body: bytes) -> None:
        """Have it at hand for the next who asks."""
        self._bytes += len(body) - len(self._kept.pop((watch, etag), b""))
        self._kept[watch, etag] = body
        while self._bytes > KEPT_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


@lru_cache
def _shape(view: type[BaseModel]) -> str:
    """A version of the service that shows more has other ETags, although the rows are the same."""
    return hashlib.sha256(json.dumps(view.model_json_schema(), sort_keys=True).encode()).hexdigest()


def etag_of(subject: Subject, mark: Mark) -> str:
    """The ETag of a subject's answer at this moment."""
    shown = repr((subject.id, _shape(subject.view), mark.changes, sorted(mark.places.items())))
    return _quoted(shown.encode())


def _quoted(shown: bytes) -> str:
    return f'"{hashlib.sha256(shown).hexdigest()[:32]}"'


Read = Callable[[Session, Mark], BaseModel]


@dataclass(frozen=True)
class _Body:
    content: bytes
    is_current: bool


def _read(read: Read, subject: Subject, mark: Mark) -> _Body:
    """The view as JSON; not current where the object has changed while it was read."""
    with open_session() as session:
        content = read(session, mark).model_dump_json().encode()
        after = read_marks(session, [subject.watch], places=False).get(subject.watch)
    return _Body(content, after is not None and after.changes == mark.changes)


def _content(read: Callable[[Session], BaseModel]) -> bytes:
    with open_session() as session:
        return read(session).model_dump_json().encode()


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
        subject: Subject,
        read: Read,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        until_finished: bool = False,
    ) -> Response:
        """The subject as `read` tells it, after waiting as asked: for a change, or until it has finished.

        Raises NotFound where there is none that its owner has.
        """
        mark = await self._look(subject)
        first = mark.changes
        if self.wait_seconds and self._knows(etag_of(subject, mark)):

            async def is_same(now: Mark) -> bool:
                return until_finished or now.changes == first

            mark = await self._while(is_same, subject, mark)
        etag = etag_of(subject, mark)
        if status == 200 and _matches(self.if_none_match, etag):
            return self._unchanged(etag, headers)
        bodies: Bodies = self.request.app.state.bodies
        content = bodies.get(subject.watch, etag)
        if content is None:
            body = await run_in_threadpool(_read, read, subject, mark)
            content = body.content
            if body.is_current:
                # Else it is newer than its ETag: good for an answer, as the next one is then no 304.
                bodies.keep(subject.watch, etag, content)
        return Response(content, status, _sent(etag, headers), media_type="application/json")

    async def answer_by_content(
        self,
        read: Callable[[Session], BaseModel],
        *,
        made_from: Subject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """What its own ETag is made from. made_from: a change of this is waited for; else of nothing."""
        mark = await self._look(made_from) if made_from is not None else None
        content = await run_in_threadpool(_content, read)
        etag = first = _quoted(content)
        if mark is not None and self.wait_seconds and self._knows(first):

            async def is_same(_: Mark) -> bool:
                nonlocal content
                content = await run_in_threadpool(_content, read)
                return _quoted(content) == first

            assert made_from is not None
            await self._while(is_same, made_from, mark)
            etag = _quoted(content)
        if _matches(self.if_none_match, etag):
            return self._unchanged(etag, headers)
        return Response(content, 200, _sent(etag, headers), media_type="application/json")

    def _knows(self, etag: str) -> bool:
        return self.if_none_match is None or _matches(self.if_none_match, etag)

    def _unchanged(self, etag: str, headers: Mapping[str, str] | None) -> Response:
        return Response(status_code=304, headers=_sent(etag, headers))

    async def _look(self, subject: Subject) -> Mark:
        marks: Marks = self.request.app.state.marks
        mark = await marks.read(subject.watch)
        if mark is None or mark.owner != subject.owner:
            raise NotFound(f"There is no {subject.noun} {subject.id}")
        return mark

    async def _while(self, is_same: Callable[[Mark], Awaitable[bool]], subject: Subject, mark: Mark) -> Mark:
        """The mark after which there is something to tell, or the newest when nobody waits any more."""
        watcher: Watcher = self.request.app.state.watcher
        gone = asyncio.create_task(_gone(self.request))
        deadline, go_on = time.monotonic() + self.wait_seconds, True
        try:
            while go_on and not mark.finished:
                seconds = deadline - time.monotonic()
                waiting = asyncio.create_task(watcher.wait(subject.watch, mark.changes, max(seconds, 0)))
                try:
                    await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _end(waiting)
                if gone.done() or waiting.cancelled() or not waiting.result():
                    return mark
                mark = await self._look(subject)
                go_on = await is_same(mark)
            return mark
        finally:
            await _end(gone)


def _sent(etag: str, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache", **(headers or {})}


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
