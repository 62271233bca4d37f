"""What completions answer: OpenAI's shapes, out of the sampler's reply."""

import time
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from core.ids import new_id
from core.sampling import PromptSamples, SampledText, SamplePart, SampleReply

FinishReason = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens of the prompts, once each, and of all responses."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Parallel lists over the tokens shown; null where nothing predicts a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One response; index counts through the prompts, n for each."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None


class Completion(BaseModel):
    """As OpenAI's."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(BaseModel):
    """A likely token at a place; bytes: its own, which may be a piece of a character in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token at a place, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """By token of the content."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One response."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None


class ChatCompletion(BaseModel):
    """As OpenAI's."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


def completion(model: str, reply: SampleReply) -> Completion:
    """The answer of /v1/completions."""
    samples = [sample for result in reply.results for sample in result.samples]
    choices = [
        CompletionChoice(
            index=index, text=s.text, finish_reason=s.finish_reason, logprobs=completion_logprobs(s)
        )
        for index, s in enumerate(samples)
    ]
    return Completion(
        id=new_id("request"),
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=usage_of(reply.results),
    )


def chat_completion(model: str, reply: SampleReply, top_logprobs: int) -> ChatCompletion:
    """The answer of /v1/chat/completions."""
    choices = [
        ChatChoice(
            index=index,
            message=AssistantMessage(content=sample.text),
            finish_reason=sample.finish_reason,
            logprobs=chat_logprobs(sample, top_logprobs),
        )
        for index, sample in enumerate(reply.results[0].samples)
    ]
    return ChatCompletion(
        id=new_id("request"),
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=usage_of(reply.results),
    )


def usage_of(results: list[PromptSamples]) -> Usage:
    """What a reply came to."""
    prompt = sum(result.prompt_tokens for result in results)
    drawn = sum(len(sample.token_ids) for result in results for sample in result.samples)
    return Usage(prompt_tokens=prompt, completion_tokens=drawn, total_tokens=prompt + drawn)


def completion_logprobs(sample: SampledText | SamplePart) -> CompletionLogprobs | None:
    """Of the tokens that a response or a part of it shows."""
    if sample.tokens is None:
        return None
    return CompletionLogprobs(
        tokens=sample.tokens,
        token_logprobs=sample.token_logprobs or [],
        top_logprobs=sample.top_logprobs or [],
        text_offset=sample.text_offset or [],
    )


def chat_logprobs(sample: SampledText | SamplePart, count: int) -> ChatLogprobs | None:
    """Of the tokens that a response or a part of it shows."""
    if sample.tokens is None:
        return None
    columns = (sample.token_logprobs, sample.top_logprobs, sample.top_bytes)
    content = []
    for token, logprob, top, own in zip(sample.tokens, *(column or [] for column in columns), strict=True):
        likeliest = sorted((top or {}).items(), key=lambda item: -item[1])[:count]
        content.append(
            TokenLogprob(
                token=token,
                logprob=logprob or 0.0,
                bytes=_bytes_of(token, own),
                top_logprobs=[TopLogprob(token=t, logprob=v, bytes=_bytes_of(t, own)) for t, v in likeliest],
            )
        )
    return ChatLogprobs(content=content)


def _bytes_of(name: str, own: Mapping[str, list[int]]) -> list[int]:
    """A token's own bytes: a piece of a character has a name that is not its text."""
    return own.get(name) or list(name.encode())
