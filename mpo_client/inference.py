"""Sampling from models, scoring with reward models, and their tokens."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import JsonValue

from mpo_client.calls import Call, Plan, Reply, given, path, send
from mpo_client.nouns import Awaiting, Blocking, answers

Conversation = Sequence[Mapping[str, str]]
T = TypeVar("T", bound=Reply)
_SECONDS = 600.0


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(Reply):
    """index counts through the prompts, `n` for each."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: JsonValue = None


class Completion(Reply):
    id: str
    model: str
    choices: list[Choice]
    usage: Usage


class Message(Reply):
    role: str
    content: str


class ChatChoice(Reply):
    index: int
    message: Message
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: JsonValue = None


class ChatCompletion(Reply):
    id: str
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Reward(Reply):
    """fp32, the model's offset subtracted."""

    index: int
    reward: float


class _Rewards(Reply):
    data: list[Reward]


class Tokens(Reply):
    """Token ids and what each spells."""

    token_ids: list[int]
    tokens: list[str]
    count: int


class _Text(Reply):
    text: str


class InferenceMethods:
    """What both clients can ask of models. All raise NotAvailable while no sampler runs."""

    @answers
    def complete(
        self,
        *,
        model: str,
        prompt: str | Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        n: int | None = None,
        stop: Sequence[str] | None = None,
        logprobs: int | None = None,
        echo: bool | None = None,
    ) -> Plan[Completion]:
        """Continues one or more prompts. The same request with the same seed gives the same text."""
        body: dict[str, JsonValue | None] = {
            "model": model,
            "prompt": prompt if isinstance(prompt, str) else [*prompt],
            "stop": None if stop is None else [*stop],
            "logprobs": logprobs,
            "echo": echo,
            **_sampling(max_tokens, temperature, top_p, seed, n),
        }
        return send(_ask("completions", Completion, body))

    @answers
    def chat(
        self,
        *,
        model: str,
        messages: Conversation,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        n: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> Plan[ChatCompletion]:
        """Continues a conversation; the model needs a chat template."""
        body: dict[str, JsonValue | None] = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "stop": None if stop is None else [*stop],
            **_sampling(max_tokens, temperature, top_p, seed, n),
        }
        return send(_ask("chat/completions", ChatCompletion, body))

    @answers
    def rewards(self, *, model: str, items: Sequence[Mapping[str, JsonValue]]) -> Plan[Sequence[float]]:
        """One reward an item, in order; an item: {"prompt", "response", "terminated": true}."""
        body: dict[str, JsonValue | None] = {"model": model, "items": [dict(item) for item in items]}
        found = yield from send(_ask("rewards", _Rewards, body))
        return [each.reward for each in sorted(found.data, key=lambda each: each.index)]

    @answers
    def tokenize(self, *, model: str, text: str, add_special_tokens: bool = True) -> Plan[Tokens]:
        body: dict[str, JsonValue | None] = {
            "model": model,
            "text": text,
            "add_special_tokens": add_special_tokens,
        }
        return send(_ask("tokenize", Tokens, body))

    @answers
    def detokenize(self, *, model: str, token_ids: Sequence[int]) -> Plan[str]:
        """The text, special tokens left out."""
        found = yield from send(_ask("detokenize", _Text, {"model": model, "token_ids": [*token_ids]}))
        return found.text


class Inference(Blocking, InferenceMethods):
    """Of a Client."""


class AsyncInference(Awaiting, InferenceMethods):
    """Of an AsyncClient."""


def _sampling(
    max_tokens: int | None, temperature: float | None, top_p: float | None, seed: int | None, n: int | None
) -> dict[str, JsonValue | None]:
    return {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "n": n}


def _ask(where: str, answer: type[T], body: Mapping[str, JsonValue | None]) -> Call[T]:
    # A model that is loaded first, or a long text, takes its time.
    asked = path(*where.split("/"))
    return Call("POST", asked, answer, body=given(body), held_seconds=_SECONDS, changes_nothing=True)
