"""The sampler's side of its Redis streams: requests in, replies out. Torch-free.

An entry stays in the stream until it is answered: so the stream's length is the queue's, and what a dead
sampler held is found and taken over.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from redis import Redis, ResponseError

from core.sampling import (
    ALIVE,
    ALIVE_SECONDS,
    CONSUMER_ALIVE,
    GROUP,
    MAX_REPLIES,
    REPLY_TTL_SECONDS,
    REQUESTS,
    Envelope,
    ErrorReply,
    Reply,
)

ENTRIES_AT_ONCE = 16
MAX_DELIVERIES = 3
"""A request that so many samplers took and none answered is what kills them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mail:
    """A request and the stream's entry that holds it."""

    entry_id: bytes
    envelope: Envelope


@dataclass(frozen=True)
class Letter:
    """A reply to a request, or a part of it, which others follow."""

    mail: Mail
    reply: Reply
    is_last: bool = True


class Mailbox:
    """One sampler's view of the streams, under its name as a consumer."""

    def __init__(self, redis: Redis, consumer: str) -> None:
        self._redis, self._consumer = redis, consumer

    def open(self) -> None:
        """Make the consumer group where it is missing: at the start, and after Redis lost its data."""
        try:
            self._redis.xgroup_create(REQUESTS, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def announce(self) -> None:
        """Say that a sampler is alive, and which."""
        pipe = self._redis.pipeline()
        pipe.set(ALIVE, self._consumer, ex=ALIVE_SECONDS)
        pipe.set(CONSUMER_ALIVE + self._consumer, "1", ex=ALIVE_SECONDS)
        pipe.execute()

    def withdraw(self) -> None:
        """Say at once that this sampler ends: nobody waits for it; what it held is left to others."""
        self._redis.delete(CONSUMER_ALIVE + self._consumer)
        if not any(self._is_alive(name) for name, _ in self._consumers()):
            self._redis.delete(ALIVE)

    def receive(self, wait_seconds: float) -> list[Mail]:
        """New requests, after waiting for one (0: not at all); those past their deadline are dropped."""
        milliseconds = max(1, int(wait_seconds * 1000)) if wait_seconds else None
        answer: Any = self._redis.xreadgroup(
            GROUP, self._consumer, {REQUESTS: ">"}, count=ENTRIES_AT_ONCE, block=milliseconds
        )
        return self._open_all(entry for _, entries in answer or [] for entry in entries)

    def take_over(self) -> list[Mail]:
        """The requests of samplers that died. One that has killed several is refused."""
        taken: list[Mail] = []
        for name, pending in self._consumers():
            if name == self._consumer or self._is_alive(name):
                continue
            if pending == 0:
                self._redis.xgroup_delconsumer(REQUESTS, GROUP, name)
                continue
            held: Any = self._redis.xpending_range(REQUESTS, GROUP, "-", "+", ENTRIES_AT_ONCE, name)
            deliveries = {entry["message_id"]: int(entry["times_delivered"]) for entry in held}
            entries: Any = self._redis.xclaim(REQUESTS, GROUP, self._consumer, 0, list(deliveries))
            for mail in self._open_all(entries):
                if deliveries[mail.entry_id] >= MAX_DELIVERIES:
                    detail = "This request ended every sampler that took it"
                    self.send([Letter(mail, ErrorReply(code="sampler_failed", status=500, detail=detail))])
                else:
                    taken.append(mail)
            self._drop(set(deliveries) - {entry_id for entry_id, _ in entries})
        return taken

    def send(self, letters: Sequence[Letter]) -> None:
        """Send replies, and forget the requests that are answered whole: all of it or nothing."""
        pipe = self._redis.pipeline(transaction=True)
        for letter in letters:
            self._send(pipe, letter.mail.envelope, letter.reply)
        if answered := [letter.mail.entry_id for letter in letters if letter.is_last]:
            self._forget(pipe, answered)
        pipe.execute()

    def withdrawn(self, mails: Sequence[Mail]) -> list[Mail]:
        """Those that are in the stream no more: whoever asked has taken them back, or Redis has lost them."""
        pipe = self._redis.pipeline(transaction=False)
        for mail in mails:
            pipe.xrange(REQUESTS, mail.entry_id, mail.entry_id)
        return [mail for mail, found in zip(mails, pipe.execute(), strict=True) if not found]

    def _open_all(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Mail]:
        mails = []
        for entry_id, fields in entries:
            try:
                mail = Mail(entry_id, Envelope.model_validate_json((fields or {}).get(b"body", b"")))
            except ValidationError as error:
                logger.warning("an entry that is no request: %d faults", error.error_count())
                self._drop([entry_id])
                continue
            if mail.envelope.deadline <= time.time():
                self._drop([entry_id])
            else:
                mails.append(mail)
        return mails

    def _drop(self, entry_ids: Iterable[bytes]) -> None:
        if ids := list(entry_ids):
            pipe = self._redis.pipeline(transaction=True)
            self._forget(pipe, ids)
            pipe.execute()

    def drop(self, mail: Mail) -> None:
        """Forget a request whose answer is of no use any more."""
        self._drop([mail.entry_id])

    @staticmethod
    def _send(pipe: Any, envelope: Envelope, reply: Reply) -> None:
        fields: dict[Any, Any] = {"id": envelope.id, "body": reply.model_dump_json()}
        pipe.xadd(envelope.reply_to, fields, maxlen=MAX_REPLIES, approximate=True)
        # With a part too: the sampler, or who reads, may be gone before the whole reply.
        pipe.expire(envelope.reply_to, REPLY_TTL_SECONDS)

    @staticmethod
    def _forget(pipe: Any, entry_ids: Sequence[bytes]) -> None:
        pipe.xack(REQUESTS, GROUP, *entry_ids)
        pipe.xdel(REQUESTS, *entry_ids)

    def _consumers(self) -> list[tuple[str, int]]:
        found: Any = self._redis.xinfo_consumers(REQUESTS, GROUP)
        return [(entry["name"].decode(), int(entry["pending"])) for entry in found]

    def _is_alive(self, consumer: str) -> bool:
        return bool(self._redis.exists(CONSUMER_ALIVE + consumer))
