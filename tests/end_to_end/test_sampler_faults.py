"""A sampler that is killed, and a Valkey that is wiped, in the middle of a stream: nobody is left waiting."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from redis import Redis

from core.sampling import CONSUMER_ALIVE, GROUP, REQUESTS
from embedded import valkey as server
from embedded.state import StateFolder
from tests.end_to_end.running_stack import RunningStack

ANSWER_SECONDS = 10.0
"""Within this a death is told, whatever was under way."""
RECOVERY_SECONDS = 90.0
LOOK_SECONDS = 0.02
LONG: dict[str, Any] = {
    "model": "tiny",
    "prompt": ["\n\nHuman: Hello.\n\nAssistant:"] * 16,
    "n": 128,
    "temperature": 2.0,
    "max_tokens": 400,
    "seed": 1,
}
"""Hundreds of thousands of tokens."""


@dataclass(frozen=True)
class Told:
    """How a request ended that could not be served, and when."""

    error: openai.APIError
    at: float


@pytest.fixture
def sdk(stack: RunningStack) -> Iterator[openai.OpenAI]:
    key = stack.client.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0) as found:
        yield found


@pytest.fixture
def valkey(stack: RunningStack) -> Iterator["Redis"]:
    with Redis.from_url(server.url(Path((stack.state / "sockets").read_text()))) as found:
        yield found


def until(ready: Callable[[], bool], what: str, seconds: float = RECOVERY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(LOOK_SECONDS)


def samplers(valkey: "Redis") -> set[bytes]:
    """The names of those that say they are alive, or did when they died a moment ago."""
    return set(valkey.scan_iter(f"{CONSUMER_ALIVE}*"))


def kill_sampler(stack: RunningStack) -> None:
    for each in StateFolder.at(stack.state).recorded():
        if each.name == "sampler":
            each.process.send(signal.SIGKILL)


def under_way(valkey: "Redis") -> int:
    """Requests that a sampler holds; their answers are still to come."""
    found: Any = valkey.xpending(REQUESTS, GROUP) if valkey.exists(REQUESTS) else {"pending": 0}
    return int(found["pending"])


def refusal(ask: Callable[[], object]) -> Told:
    with pytest.raises(openai.APIError) as told:
        ask()
    return Told(told.value, time.monotonic())


def served_again(sdk: openai.OpenAI) -> bool:
    try:
        return bool(sdk.completions.create(model="tiny", prompt="Hello", max_tokens=2).choices)
    except openai.InternalServerError as error:
        if error.status_code == 503:
            return False
        raise


def left_without_end(valkey: "Redis") -> list[bytes]:
    """Keys of requests and replies that nothing will ever take away."""
    keys = [key for key in valkey.scan_iter("mpo:sampler:*") if key != REQUESTS.encode()]
    return [key for key in keys if valkey.ttl(key) == -1]


@pytest.fixture
def waiting(sdk: openai.OpenAI, valkey: "Redis", stack: RunningStack) -> Iterator[list[Future[Told]]]:
    """A stream that has begun, and a request without a stream, both held by the sampler."""
    until(lambda: served_again(sdk), "a sampler that answers")
    with ThreadPoolExecutor(2) as pool:
        stream = sdk.completions.create(**LONG, stream=True)
        assert next(iter(stream)).choices
        whole = pool.submit(refusal, lambda: sdk.completions.create(**LONG))
        until(lambda: under_way(valkey) == 2, "both requests under way")
        yield [pool.submit(refusal, lambda: list(stream)), whole]


def all_were_told_in_time(waiting: list[Future[Told]], struck_at: float) -> None:
    streamed, whole = (each.result() for each in waiting)
    assert streamed.error.code == "no_sampler"
    assert isinstance(whole.error, openai.InternalServerError)
    assert (whole.error.status_code, whole.error.code) == (503, "no_sampler")
    assert 1 <= int(whole.error.response.headers["Retry-After"]) <= 120
    assert max(streamed.at, whole.at) - struck_at < ANSWER_SECONDS


def nothing_is_left(sdk: openai.OpenAI, valkey: "Redis") -> None:
    until(lambda: served_again(sdk), "a sampler that answers again")
    until(lambda: under_way(valkey) == 0 and valkey.xlen(REQUESTS) == 0, "an empty queue")
    assert left_without_end(valkey) == []


def test_a_sampler_that_dies_again_and_again_leaves_nobody_waiting(
    stack: RunningStack, sdk: openai.OpenAI, valkey: "Redis", waiting: list[Future[Told]]
) -> None:
    known, struck_at = samplers(valkey), time.monotonic()
    kill_sampler(stack)
    # Each that the supervisor starts says that it is alive, and dies before it could go on with anything.
    while not all(each.done() for each in waiting):
        if new := samplers(valkey) - known:
            known |= new
            kill_sampler(stack)
        time.sleep(LOOK_SECONDS)
    all_were_told_in_time(waiting, struck_at)
    nothing_is_left(sdk, valkey)


def test_a_wiped_valkey_leaves_nobody_waiting(
    sdk: openai.OpenAI, valkey: "Redis", waiting: list[Future[Told]]
) -> None:
    struck_at = time.monotonic()
    valkey.flushall()
    all_were_told_in_time(waiting, struck_at)
    nothing_is_left(sdk, valkey)
