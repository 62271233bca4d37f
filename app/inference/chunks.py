"""What a stream of completions tells: OpenAI's chunks, out of the parts of the sampler's reply."""

import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from app.inference.views import (
    ChatLogprobs,
    CompletionLogprobs,
    FinishReason,
    Usage,
    chat_logprobs,
    completion_logprobs,
    usage_of,
)
from core.ids import new_id
from core.sampling import SampledText, SamplePart, SampleReply


class CompletionPiece(BaseModel):
    """Text that a response has got."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None


class CompletionChunk(BaseModel):
    """As OpenAI's."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionPiece]
    usage: Usage | None = None


class Delta(BaseModel):
    """What a message has got; the role comes first, and alone."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatPiece(BaseModel):
    """Text that a response has got."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(BaseModel):
    """As OpenAI's."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatPiece]
    usage: Usage | None = None


Chunk = CompletionChunk | ChatChunk


class _Told:
    """What has been told of each response: each character and token once, whatever the sampler repeats."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, int]] = {}

    def new(self, part: SamplePart) -> SamplePart | None:
        """What of a part has not been told; None where that is nothing."""
        characters, tokens = self._told.get(part.index, (0, 0))
        text = part.text[max(0, characters - part.offset) :]
        columns = _columns_after(part, max(0, tokens - part.token_offset))
        count = len(columns.get("tokens") or [])
        self._told[part.index] = (characters + len(text), tokens + count)
        return SamplePart(index=part.index, text=text, **columns) if text or count else None

    def rest(self, index: int, sample: SampledText) -> SamplePart:
        """What of a whole response has not been told."""
        characters, tokens = self._told.get(index, (0, 0))
        return SamplePart(index=index, text=sample.text[characters:], **_columns_after(sample, tokens))


def _columns_after(of: SamplePart | SampledText, tokens: int) -> dict[str, list]:  # type: ignore[type-arg]
    if of.tokens is None:
        return {}
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset", "top_bytes")
    return {name: (getattr(of, name) or [])[tokens:] for name in names}


class CompletionChunks:
    """Chunks of /v1/completions."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._model, self._include_usage = model, include_usage
        self._id, self._created, self._told = new_id("request"), int(time.time()), _Told()

    def opening(self) -> Iterator[Chunk]:
        """Before any text."""
        yield from ()

    def of_part(self, part: SamplePart) -> Iterator[Chunk]:
        """What a response has got."""
        if (new := self._told.new(part)) is not None:
            yield self._text(new)

    def of_reply(self, reply: SampleReply) -> Iterator[Chunk]:
        """What was left to tell, how each response ended, and the tokens of all."""
        samples = [sample for result in reply.results for sample in result.samples]
        for index, sample in enumerate(samples):
            yield from self._ending(self._told.rest(index, sample), sample.finish_reason)
        if self._include_usage:
            yield self._chunk([], usage_of(reply.results))

    def _ending(self, rest: SamplePart, finish_reason: FinishReason) -> Iterator[Chunk]:
        yield self._text(rest, finish_reason)

    def _text(self, part: SamplePart, finish_reason: FinishReason | None = None) -> Chunk:
        logprobs = completion_logprobs(part)
        piece = CompletionPiece(
            index=part.index, text=part.text, finish_reason=finish_reason, logprobs=logprobs
        )
        return self._chunk([piece])

    def _chunk(self, choices: list[Any], usage: Usage | None = None) -> Chunk:
        return CompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


class ChatChunks(CompletionChunks):
    """Chunks of /v1/chat/completions."""

    def __init__(self, model: str, n: int, top_logprobs: int, *, include_usage: bool) -> None:
        super().__init__(model, include_usage=include_usage)
        self._n, self._top_logprobs = n, top_logprobs

    def opening(self) -> Iterator[Chunk]:
        """Whose message it is."""
        for index in range(self._n):
            yield self._chunk([ChatPiece(index=index, delta=Delta(role="assistant", content=""))])

    def _ending(self, rest: SamplePart, finish_reason: FinishReason) -> Iterator[Chunk]:
        if rest.text or rest.tokens:
            yield self._text(rest)
        yield self._chunk([ChatPiece(index=rest.index, delta=Delta(), finish_reason=finish_reason)])

    def _text(self, part: SamplePart, finish_reason: FinishReason | None = None) -> Chunk:
        logprobs = chat_logprobs(part, self._top_logprobs)
        delta = Delta(content=part.text)
        piece = ChatPiece(index=part.index, delta=delta, finish_reason=finish_reason, logprobs=logprobs)
        return self._chunk([piece])

    def _chunk(self, choices: list[Any], usage: Usage | None = None) -> Chunk:
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
