"""A job's events as they come, by server-sent events: one feed a process reads for all who wait.

A reader has a place: its job, and the id of the event that it has sent last. Every look is one statement over
all places at which somebody waits, and readers at one place share what it found. Who is still sending waits
for nothing: however slow a client is, nothing piles up for it and nobody waits for it.

A job's events get their ids under its row's lock, together with its counter: what a statement sees of a job
has no gaps, so a place is all that has to be known to go on anywhere, also after a lost connection.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fastapi import Response
from sqlalchemy import RowMapping, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.jobs.schemas import EventView
from core.database import open_session
from core.states import FINISHED_JOB

LOOK_SECONDS = 0.2
KEEP_ALIVE_SECONDS = 15.0
SEND_SECONDS = 60.0
"""A client that takes nothing for so long is given up."""
PAGE = 100
MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "Vary": "Accept", "X-Accel-Buffering": "no"}
RETRY = b"retry: 2000\n\n"
KEEP_ALIVE = b": still here\n\n"

BEYOND = text(
    """
    SELECT place.number, jobs.id IS NULL OR jobs.deleted_at IS NOT NULL OR jobs.status = ANY(:over) AS over,
           event.id, event.type, event.stage, event.message, event.data, event.created_at
    FROM unnest(CAST(:jobs AS text[]), CAST(:afters AS bigint[]))
         WITH ORDINALITY AS place(job_id, after, number)
    LEFT JOIN jobs ON jobs.id = place.job_id
    LEFT JOIN LATERAL (
        SELECT * FROM events WHERE events.job_id = place.job_id AND events.id > place.after
        ORDER BY events.id LIMIT :page
    ) AS event ON jobs.event_counter > place.after
    WHERE jobs.id IS NULL OR jobs.deleted_at IS NOT NULL OR jobs.status = ANY(:over)
       OR jobs.event_counter > place.after
    ORDER BY place.number, event.id
    """
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """How far a reader has come in a job's events."""

    job_id: str
    after: int


@dataclass(frozen=True)
class News:
    """Events beyond a place as they go over the wire, the last one's id, and whether none will follow."""

    content: bytes
    last: int
    ended: bool


class EventFeed:
    """Reads for all readers of this process, in one statement every `LOOK_SECONDS`."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[News], Place] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @contextmanager
    def waiting(self, place: Place) -> Iterator[asyncio.Future[News]]:
        """What comes beyond a place, once it has come; forgotten at the end of the block."""
        news: asyncio.Future[News] = asyncio.get_running_loop().create_future()
        if self._stopping:
            news.set_result(News(b"", place.after, ended=True))
        self._waiting[news] = place
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_on())
        try:
            yield news
        finally:
            del self._waiting[news]

    def waiting_readers(self) -> int:
        """How many wait at this moment."""
        return len(self._waiting)

    def let_go(self) -> None:
        """The server is to stop: every stream ends; clients go on elsewhere from the last id they have."""
        self._stopping = True
        self._hand_out({place: News(b"", place.after, ended=True) for place in self._waiting.values()})

    async def stop(self) -> None:
        """End the task too."""
        self.let_go()
        if self._task is not None:
            # Not cancelled: its thread would go on and keep a connection.
            await asyncio.wait({self._task})
            self._task = None

    async def _look_on(self) -> None:
        while self._waiting and not self._stopping:
            try:
                found = await run_in_threadpool(read_beyond, set(self._waiting.values()))
            except SQLAlchemyError as error:
                # Streams stay open over a short outage, and lose nothing by it.
                logger.warning("cannot look at events: %s", type(error).__name__)
            else:
                self._hand_out(found)
            await asyncio.sleep(LOOK_SECONDS)

    def _hand_out(self, found: Mapping[Place, News]) -> None:
        for waiting, place in self._waiting.items():
            if place in found and not waiting.done():
                waiting.set_result(found[place])


def read_beyond(places: Iterable[Place]) -> dict[Place, News]:
    """What lies beyond each place where something does, or where nothing more will come."""
    asked = list(places)
    parameters = {
        "jobs": [place.job_id for place in asked],
        "afters": [place.after for place in asked],
        "over": [str(state) for state in FINISHED_JOB],
        "page": PAGE,
    }
    with open_session() as session:
        rows = session.execute(BEYOND, parameters).mappings().all()
    found = {}
    for number, group in groupby(rows, key=lambda row: row["number"]):
        place = asked[number - 1]
        found[place] = _news(place, list(group))
    return found


def _news(place: Place, rows: list[RowMapping]) -> News:
    events = [EventView.model_validate(dict(row)) for row in rows if row["id"] is not None]
    last = events[-1].id if events else place.after
    return News(b"".join(map(written, events)), last, ended=rows[0]["over"] and len(events) < PAGE)


def written(event: EventView) -> bytes:
    """An event on the wire. JSON has no line breaks of its own, so one `data` line holds it."""
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


def wants_stream(accept: str | None) -> bool:
    """Whether an Accept header names event streams."""
    ranges = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
    return MEDIA_TYPE in ranges


class EventStream(Response):
    """Events from a place on, until the job has finished and all are sent, or the client has gone."""

    media_type = MEDIA_TYPE

    def __init__(self, feed: EventFeed, place: Place) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._feed, self._place = feed, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await _send(send, RETRY)
            await self._send_events(send, gone)
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            logger.info("a reader of %s has taken nothing for a minute", self._place.job_id)
        finally:
            gone.cancel()
            await asyncio.wait({gone})

    async def _send_events(self, send: Send, gone: asyncio.Task[None]) -> None:
        place = self._place
        while not gone.done():
            with self._feed.waiting(place) as news:
                either: set[asyncio.Future[Any]] = {news, gone}
                await asyncio.wait(either, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                await _send(send, KEEP_ALIVE)
                continue
            found = news.result()
            await _send(send, found.content)
            place = Place(place.job_id, found.last)
            if found.ended:
                return


async def _send(send: Send, content: bytes) -> None:
    """Returns once the server's buffer has room: a slow client slows down its own stream alone."""
    if content:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": content, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    message: Any = {}
    while message.get("type") != "http.disconnect":
        message = await receive()
