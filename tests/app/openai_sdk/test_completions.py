"""OpenAI's own package, unmodified, against the service: completions and chats, streamed and not."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from core.bootstrap import register_model
from core.database import open_transaction
from core.sampling import GROUP, REPLIES, REQUESTS, SampleParts
from tests.app.serving import served
from tests.mpo.tiny import SPECIAL
from tests.sampler import connect, running_sampler, write_models

CHAT: list[Any] = [{"role": "user", "content": "red cat"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def address(client: TestClient, folders: Any) -> Iterator[tuple[str, str]]:
    """Where the service is, and a key."""
    with open_transaction() as tx:
        for name in ("plain", "chatty", "scorer"):
            register_model(tx, getattr(folders, name), name=name)
    key = client.headers["Authorization"].removeprefix("Bearer ")
    with running_sampler(), served(client.app) as url:  # type: ignore[arg-type]
        yield f"{url}/v1", key


@pytest.fixture
def sdk(address: tuple[str, str]) -> Iterator[openai.OpenAI]:
    url, key = address
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as found:
        yield found


def test_a_streamed_completion_is_the_whole_one(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "plain",
        "prompt": ["red ", "blue"],
        "n": 2,
        "seed": 3,
        "max_tokens": 24,
    }
    whole = sdk.completions.create(**asked, logprobs=2)
    texts, tokens, reasons = ["", "", "", ""], [[], [], [], []], [None] * 4  # type: ignore[var-annotated]
    usage = None
    for chunk in sdk.completions.create(
        **asked, logprobs=2, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens or []
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices if choice.logprobs]
    assert usage == whole.usage


def test_a_streamed_echo_begins_with_the_prompt(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "plain", "prompt": "red ", "echo": True, "seed": 1, "logprobs": 1}
    chunks = list(sdk.completions.create(**asked, stream=True))
    whole = sdk.completions.create(**asked).choices[0]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert whole.text.startswith("red ")
    told = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.tokens or []]
    assert whole.logprobs
    assert told == whole.logprobs.tokens


def test_a_streamed_text_never_shows_the_beginning_of_its_stop(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "plain", "prompt": "red ", "seed": 5, "max_tokens": 48}
    whole = sdk.completions.create(**asked).choices[0].text
    stop = whole[10:16]
    stream = sdk.completions.create(**asked, stop=stop, stream=True)
    shown, reason = "", None
    for chunk in stream:
        shown += chunk.choices[0].text
        assert whole[: whole.index(stop)].startswith(shown)
        reason = chunk.choices[0].finish_reason
    assert (shown, reason) == (whole[: whole.index(stop)], "stop")


def test_a_streamed_chat_is_the_whole_one(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "chatty", "messages": CHAT, "seed": 3, "max_tokens": 24, "n": 2}
    whole = sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    texts, roles, reasons, logprobs = ["", ""], [None, None], [None, None], [[], []]  # type: ignore[var-annotated]
    chunks = sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=2, stream=True)
    for chunk in chunks:
        for choice in chunk.choices:
            roles[choice.index] = choice.delta.role or roles[choice.index]  # type: ignore[assignment]
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[assignment]
            if choice.logprobs:
                logprobs[choice.index] += choice.logprobs.content or []
    assert roles == ["assistant"] * 2
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    told = [entry for content in logprobs for entry in content]
    same = [entry for c in whole.choices if c.logprobs for entry in c.logprobs.content or []]
    assert [entry.token for entry in told] == [entry.token for entry in same]
    # To rounding: the second of them went on from the prompt that the first had read.
    assert [e.logprob for e in told] == pytest.approx([e.logprob for e in same], abs=1e-5)
    assert [len(e.top_logprobs) for e in told] == [2] * len(same)


def test_a_piece_of_a_character_is_told_by_its_own_bytes(sdk: openai.OpenAI) -> None:
    """These random models draw single bytes, most of them no character of their own."""
    asked: dict[str, Any] = {"model": "chatty", "messages": CHAT, "seed": 1, "max_tokens": 40, "n": 8}
    whole = sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    told: list[list[Any]] = [[] for _ in whole.choices]
    for chunk in sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=True):
        for piece in chunk.choices:
            told[piece.index] += (piece.logprobs and piece.logprobs.content) or []
    pieces = 0
    for choice, streamed in zip(whole.choices, told, strict=True):
        assert choice.logprobs
        content = [entry for entry in choice.logprobs.content or [] if entry.token not in SPECIAL]
        spelt = b"".join(bytes(entry.bytes or []) for entry in content)
        assert spelt.decode(errors="replace") == choice.message.content
        assert [entry.bytes for entry in streamed if entry.token not in SPECIAL] == [e.bytes for e in content]
        for entry in content:
            pieces += bytes(entry.bytes or []) != entry.token.encode()
            same = [top.bytes for top in entry.top_logprobs if top.token == entry.token]
            assert same in ([], [entry.bytes])
    assert pieces


def test_the_stream_helper_of_the_package_reads_it(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "chatty", "messages": CHAT, "seed": 3, "max_tokens": 12}
    with sdk.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        # It raises where a text was cut, which these random models' texts are.
        with pytest.raises(openai.LengthFinishReasonError) as cut:
            stream.get_final_completion()
    assert {"chunk", "content.delta"} <= kinds
    again = sdk.chat.completions.create(**asked)
    assert cut.value.completion.choices[0].message.content == again.choices[0].message.content


def test_models_are_listed_and_found(sdk: openai.OpenAI) -> None:
    assert {"plain", "chatty", "scorer"} <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("plain").id == "plain"


def test_errors_are_the_package_s_own(sdk: openai.OpenAI, address: tuple[str, str]) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="nothing", prompt="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        sdk.completions.create(model="plain", prompt="red " * 5_000, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        sdk.completions.create(model="plain", prompt="a", temperature=9)
    assert wrong.value.param == "temperature"
    stranger = openai.OpenAI(base_url=address[0], api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_who_leaves_a_stream_leaves_nothing_behind(sdk: openai.OpenAI) -> None:
    stream = sdk.completions.create(
        model="plain", prompt=["red "] * 16, n=128, max_tokens=100_000, stop=["\0"], stream=True
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    with connect() as redis:
        # The client's going takes it out of the queue; the sampler forgets it as it leaves the batch.
        while redis.xlen(REQUESTS) or redis.xpending(REQUESTS, GROUP)["pending"]:
            assert time.monotonic() < deadline, "the request is still under way"
            time.sleep(0.05)
        [replies] = redis.scan_iter("mpo:sampler:replies:*")
        told = [REPLIES.validate_json(fields[b"body"]) for _, fields in redis.xrange(replies)]
        assert all(isinstance(each, SampleParts) for each in told), "it was drawn to its end"
        assert redis.ttl(replies) > 0
    assert sdk.completions.create(model="plain", prompt="red ", max_tokens=2).choices


def test_streams_run_side_by_side(address: tuple[str, str]) -> None:
    """A short one that comes while long ones run is done before them."""

    async def ask(sdk: openai.AsyncOpenAI, tokens: int, seed: int) -> tuple[str, float]:
        text = ""
        stream = await sdk.completions.create(
            model="plain", prompt="red ", max_tokens=tokens, seed=seed, stream=True, temperature=0.7
        )
        async for chunk in stream:
            text += chunk.choices[0].text
        return text, time.monotonic()

    async def all_of_them() -> list[tuple[str, float]]:
        async with openai.AsyncOpenAI(base_url=address[0], api_key=address[1], max_retries=0) as sdk:
            alone = await ask(sdk, 4, 9)
            long = [asyncio.create_task(ask(sdk, 400, seed)) for seed in range(4)]
            await asyncio.sleep(0)
            short = await ask(sdk, 4, 9)
            assert short[0] == alone[0]
            return [short, *(await asyncio.gather(*long))]

    done = asyncio.run(all_of_them())
    assert len({text for text, _ in done}) == 5
