"""Asks the sampler and waits for its answer: what workers do. API processes have their own way."""

import time
from typing import Any

from redis import Redis

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
)


class SamplerClient:
    """One thread an instance."""

    def __init__(self, redis: Redis) -> None:
        self._redis, self._process_id = redis, new_id("request")

    def ask(self, request: Request) -> Any:
        """The reply to a request; raises SamplerRefused, NoSampler, SamplerBusy."""
        if not self._redis.exists(ALIVE):
            raise NoSampler()
        if int(self._redis.xlen(REQUESTS)) >= MAX_PENDING_REQUESTS:
            raise SamplerBusy()
        asked = envelope(request, self._process_id)
        self._redis.xadd(REQUESTS, {"body": asked.model_dump_json()})
        reply = self._await(asked)
        if isinstance(reply, ErrorReply):
            raise SamplerRefused(reply)
        return reply

    def _await(self, asked: Envelope) -> Any:
        after = "0"
        while time.time() < asked.deadline:
            answer: Any = self._redis.xread({asked.reply_to: after}, block=1_000, count=16)
            for _, entries in answer or []:
                for entry_id, fields in entries:
                    after = entry_id
                    if fields[b"id"].decode() == asked.id:
                        self._redis.xdel(asked.reply_to, entry_id)
                        return REPLIES.validate_json(fields[b"body"])
            if not answer and not self._redis.exists(ALIVE):
                raise NoSampler()
        raise NoSampler("The sampler did not answer in time")
