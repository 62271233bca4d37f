"""An answer in server-sent events, as OpenAI's clients read them: chunks, and then `[DONE]`."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import StreamingResponse

from app.inference.chunks import Chunk
from app.problems import openai_error, translate
from core.sampling import SamplePart, SampleParts, SampleReply

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Chunks(Protocol):
    """How a stream spells the parts of a reply."""

    def opening(self) -> Iterator[Chunk]:
        """Before any text."""

    def of_part(self, part: SamplePart) -> Iterator[Chunk]:
        """What a response has got."""

    def of_reply(self, reply: SampleReply) -> Iterator[Chunk]:
        """The end."""


class Stream(StreamingResponse):
    """Once the first words are there: what goes wrong before them has a status of its own."""

    @classmethod
    async def begin(cls, replies: AsyncGenerator[Any, None], chunks: Chunks) -> "Stream":
        """Waits for the first part. Raises what refuses the request."""
        first = await anext(replies)
        return cls(_events(first, replies, chunks), media_type="text/event-stream", headers=HEADERS)


async def _events(first: Any, replies: AsyncGenerator[Any, None], chunks: Chunks) -> AsyncIterator[bytes]:
    async with aclosing(replies):
        for chunk in chunks.opening():
            yield _event(chunk)
        for chunk in _chunks(first, chunks):
            yield _event(chunk)
        try:
            async for reply in replies:
                for chunk in _chunks(reply, chunks):
                    yield _event(chunk)
        except Exception as error:
            # The status has gone out: so the stream ends with the error, as OpenAI's does.
            yield b"data: " + openai_error(translate(error)) + b"\n\n"
            return
        yield DONE


def _chunks(reply: SampleParts | SampleReply, chunks: Chunks) -> Iterator[Chunk]:
    if isinstance(reply, SampleParts):
        for part in reply.parts:
            yield from chunks.of_part(part)
    else:
        yield from chunks.of_reply(reply)


def _event(chunk: Chunk) -> bytes:
    # A null logprob or finish_reason is told; a delta has only what it has.
    return b"data: " + _spelled(chunk) + b"\n\n"


def _spelled(chunk: Chunk) -> bytes:
    body = chunk.model_dump(mode="json")
    for choice in body["choices"]:
        if "delta" in choice:
            choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
