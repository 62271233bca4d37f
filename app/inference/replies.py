"""How an API process asks the sampler: one task reads this process's reply stream for all who wait."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from redis import RedisError, ResponseError
from redis.asyncio import Redis

from core.ids import new_id
from core.sampling import (
    ALIVE,
    CONSUMER_ALIVE,
    GROUP,
    MAX_PENDING_REQUESTS,
    REPLIES,
    REQUESTS,
    Envelope,
    ErrorReply,
    NoSampler,
    Request,
    SampleParts,
    SamplerBusy,
    SamplerRefused,
    envelope,
    reply_stream,
)
from core.settings import settings

LOOK_SECONDS = 1.0
"""How often who waits makes sure that a sampler and the client are still there."""
READ_BLOCK_MILLISECONDS = 2_000
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 0.5
ENTRIES_AT_ONCE = 64

logger = logging.getLogger(__name__)


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


@dataclass(eq=False)
class _Asked:
    """A request on its way. lost: looks in a row at which nobody was there who would answer."""

    envelope: Envelope
    entry_id: bytes | str
    replies: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    lost: int = 0


class SamplerGateway:
    """One a process; holds no connection before the first request."""

    def __init__(self) -> None:
        self._process_id = new_id("request")
        self._redis: Redis | None = None
        self._waiting: dict[str, asyncio.Queue[Any]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request, is_gone: Callable[[], Awaitable[bool]]) -> Any:
        """The reply. Raises SamplerRefused, NoSampler, SamplerBusy, ClientGone."""
        async with aclosing(self.stream(request, is_gone)) as replies:
            async for reply in replies:
                if not isinstance(reply, SampleParts):
                    return reply
        raise AssertionError("a reply ends every stream")

    async def stream(
        self, request: Request, is_gone: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Any, None]:
        """The parts of a reply as they come, and last the reply itself. Raises as `ask` does."""
        try:
            async for reply in self._stream(request, is_gone):
                if isinstance(reply, ErrorReply):
                    raise SamplerRefused(reply)
                yield reply
        except (RedisError, OSError) as error:
            logger.warning("Redis: %s", type(error).__name__)
            raise NoSampler("Redis is away: try again in a few seconds") from error

    async def close(self) -> None:
        """End the task and the connections."""
        await asyncio.gather(*self._ending)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()
        self._reader = self._redis = None

    async def _stream(
        self, request: Request, is_gone: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Any, None]:
        redis = self._connect()
        sent = envelope(request, self._process_id)
        replies = self._waiting[sent.id] = asyncio.Queue()
        asked, answered = None, False
        try:
            # One way to Redis and back: what must not wait there is taken back.
            pipe = redis.pipeline(transaction=False)
            pipe.exists(ALIVE)
            pipe.xlen(REQUESTS)
            pipe.xadd(REQUESTS, {"body": sent.model_dump_json()})
            alive, waiting, entry_id = await pipe.execute()
            asked = _Asked(sent, entry_id, replies)
            if not alive:
                raise NoSampler()
            if int(waiting) >= MAX_PENDING_REQUESTS:
                raise SamplerBusy()
            while not answered:
                reply = await self._next(asked, is_gone)
                answered = not isinstance(reply, SampleParts)
                yield reply
        finally:
            del self._waiting[sent.id]
            if asked is not None and not answered:
                # A task of its own: where the client is gone, this one is cancelled at its next await.
                ending = asyncio.create_task(self._take_back(redis, asked.entry_id))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    async def _next(self, asked: _Asked, is_gone: Callable[[], Awaitable[bool]]) -> Any:
        """The next reply to a request."""
        while time.time() < asked.envelope.deadline:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    reply = await asked.replies.get()
            except TimeoutError:
                if await is_gone():
                    raise ClientGone from None
                await self._look_for(asked)
            else:
                if isinstance(reply, NoSampler):
                    raise reply
                return reply
        raise NoSampler("The sampler did not answer in time")

    async def _look_for(self, asked: _Asked) -> None:
        """Raises NoSampler where nobody will answer."""
        redis = self._connect()
        if not await redis.exists(ALIVE):
            raise NoSampler()
        # An answered request leaves the stream as its reply is sent, and what a dead one held may be taken
        # over: so the reply, or another sampler, is here at the next look.
        why = await self._why_lost(redis, asked.entry_id)
        if why is not None and asked.lost:
            raise NoSampler(why)
        asked.lost = 0 if why is None else asked.lost + 1

    @staticmethod
    async def _why_lost(redis: "Redis", entry_id: bytes | str) -> str | None:
        """Why nobody will answer a request that is on its way; None where somebody may."""
        if not await redis.xrange(REQUESTS, entry_id, entry_id):
            return "The request was lost: Redis has come back empty"
        try:
            held: Any = await redis.xpending_range(REQUESTS, GROUP, entry_id, entry_id, 1)
        except ResponseError:
            return None  # no group yet: a sampler makes it anew, and takes what is there
        if not held or await redis.exists(CONSUMER_ALIVE + held[0]["consumer"].decode()):
            return None
        return "The sampler that worked on this request has died"

    async def _take_back(self, redis: "Redis", entry_id: bytes | str) -> None:
        """Take a request that nobody waits for out of the queue."""
        try:
            await redis.xdel(REQUESTS, entry_id)
        except (RedisError, OSError) as error:
            logger.info("a request stays until its deadline: %s", type(error).__name__)

    def _connect(self) -> "Redis":
        if self._redis is None:
            url = settings().redis_url.get_secret_value()
            self._redis = Redis.from_url(
                url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
            )
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(self._redis))
        return self._redis

    async def _read(self, redis: "Redis") -> None:
        stream = reply_stream(self._process_id)
        after: bytes | str = "0"
        while True:
            try:
                answer: Any = await redis.xread(
                    {stream: after}, block=READ_BLOCK_MILLISECONDS, count=ENTRIES_AT_ONCE
                )
            except (RedisError, OSError) as error:
                logger.warning("no replies are read: %s", type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for _, entries in answer or []:
                for entry_id, fields in entries:
                    after = entry_id
                    self._resolve(fields)

    def _resolve(self, fields: dict[bytes, bytes]) -> None:
        replies = self._waiting.get(fields.get(b"id", b"").decode())
        if replies is None:
            return
        try:
            replies.put_nowait(REPLIES.validate_json(fields[b"body"]))
        except ValidationError as error:
            replies.put_nowait(NoSampler("The sampler's answer cannot be read; is it of another version?"))
            logger.warning("a reply that cannot be read: %d faults", error.error_count())
