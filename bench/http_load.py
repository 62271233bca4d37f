"""A load generator for HTTP/1.1 that costs little: keep-alive connections on one event loop and no client.

Every answer is read whole and its status checked. Closed loop: each connection sends its next request when it
has the answer to the last, so that the rate is what the server gives. Open loop: requests fall due at a fixed
rate whatever the server does, and a time counts from when the request was due, so that a stall is seen by all
that it delays.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_BODILESS = 304


@dataclass(frozen=True)
class Answer:
    """What came back: its status, its head and its body, as bytes."""

    status: int
    head: bytes
    body: bytes


@dataclass
class Measured:
    """What a load did. seconds: of each answer, in the order in which they came."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wall_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall_seconds

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_HEAD_END)
        if end < 0 or self._waiting is None:
            return
        head = bytes(self._buffer[:end])
        status, length = int(head[9:12]), _LENGTH.search(head)
        size = 0 if status == _BODILESS else int(length.group(1)) if length else -1
        whole = end + len(_HEAD_END) + size
        if size < 0:
            self._waiting.set_exception(ConnectionError(f"an answer without length: {head!r}"))
        elif len(self._buffer) >= whole:
            answer = Answer(status, head, bytes(self._buffer[end + len(_HEAD_END) : whole]))
            del self._buffer[:whole]
            waiting, self._waiting = self._waiting, None
            waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the server closed a connection"))

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send a whole request; its answer comes later."""
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


async def run_load(
    host: str,
    port: int,
    requests: Iterator[bytes],
    on_answer: Callable[[Answer], None],
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
) -> Measured:
    """Load a server for some seconds. rate: requests a second of an open loop; None = a closed one.

    Raises ConnectionError where the server breaks a connection off. Waits for what is under way at the end.
    """
    loop, measured = asyncio.get_running_loop(), Measured()
    made = [(await loop.create_connection(Connection, host, port))[1] for _ in range(connections)]
    begun = time.perf_counter()
    due = _due_times(begun, seconds, rate)

    async def drive(connection: Connection) -> None:
        for due_at in due:
            if due_at is not None and (early := due_at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            sent_at = due_at or time.perf_counter()
            answer = await connection.ask(next(requests))
            measured.seconds.append(time.perf_counter() - sent_at)
            measured.statuses[answer.status] += 1
            on_answer(answer)

    try:
        await asyncio.gather(*map(drive, made))
    finally:
        for connection in made:
            connection.close()
    measured.wall_seconds = time.perf_counter() - begun
    return measured


def _due_times(begun: float, seconds: float, rate: float | None) -> Iterator[float | None]:
    """Shared by all connections: whichever is free takes the next request."""
    if rate is None:
        while time.perf_counter() < begun + seconds:
            yield None
        return
    for number in range(int(seconds * rate)):
        yield begun + number / rate
