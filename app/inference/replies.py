"""How an API process asks the sampler: one task reads this process's reply stream for all who wait."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from redis import RedisError
from redis.asyncio import Redis

from core.ids import new_id
from core.sampling import (
    ALIVE,
    MAX_PENDING_REQUESTS,
    REPLIES,
    REQUESTS,
    Envelope,
    ErrorReply,
    NoSampler,
    Request,
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


class SamplerGateway:
    """One a process; holds no connection before the first request."""

    def __init__(self) -> None:
        self._process_id = new_id("request")
        self._redis: Redis | None = None
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def ask(self, request: Request, is_gone: Callable[[], Awaitable[bool]]) -> Any:
        """The reply. Raises SamplerRefused, NoSampler, SamplerBusy, ClientGone."""
        try:
            reply = await self._ask(request, is_gone)
        except (RedisError, OSError) as error:
            logger.warning("Redis: %s", type(error).__name__)
            raise NoSampler("Redis is away: try again in a few seconds") from error
        if isinstance(reply, ErrorReply):
            raise SamplerRefused(reply)
        return reply

    async def close(self) -> None:
        """End the task and the connections."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()
        self._reader = self._redis = None

    async def _ask(self, request: Request, is_gone: Callable[[], Awaitable[bool]]) -> Any:
        redis = self._connect()
        if not await redis.exists(ALIVE):
            raise NoSampler()
        if int(await redis.xlen(REQUESTS)) >= MAX_PENDING_REQUESTS:
            raise SamplerBusy()
        asked = envelope(request, self._process_id)
        future = self._waiting[asked.id] = asyncio.get_running_loop().create_future()
        entry_id = None
        try:
            entry_id = await redis.xadd(REQUESTS, {"body": asked.model_dump_json()})
            return await self._wait(asked, future, is_gone)
        finally:
            del self._waiting[asked.id]
            if entry_id is not None and not future.done():
                await self._take_back(redis, entry_id)

    async def _wait(
        self, asked: Envelope, future: "asyncio.Future[Any]", is_gone: Callable[[], Awaitable[bool]]
    ) -> Any:
        redis = self._connect()
        while time.time() < asked.deadline:
            done, _ = await asyncio.wait({future}, timeout=LOOK_SECONDS)
            if done:
                return future.result()
            if await is_gone():
                raise ClientGone
            if not await redis.exists(ALIVE):
                raise NoSampler()
        raise NoSampler("The sampler did not answer in time")

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
        future = self._waiting.get(fields.get(b"id", b"").decode())
        if future is None or future.done():
            return
        try:
            future.set_result(REPLIES.validate_json(fields[b"body"]))
        except ValidationError as error:
            future.set_exception(NoSampler("The sampler's answer cannot be read; is it of another version?"))
            logger.warning("a reply that cannot be read: %d faults", error.error_count())
