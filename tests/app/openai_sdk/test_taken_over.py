"""Two samplers, of which one is killed in mid-stream: the other goes on with the same text."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from core.bootstrap import register_model
from core.database import open_session, open_transaction
from core.heartbeats import live_workers
from core.sampling import GROUP, REQUESTS
from tests.app.serving import served
from tests.mpo.tiny import write_policy
from tests.sampler import connect, sampler_process

START_SECONDS = 90
ASKED: dict[str, Any] = {"model": "plain", "prompt": ["red ", "blue "], "n": 128, "seed": 3, "max_tokens": 48}


@pytest.fixture
def sdk(client: TestClient, tmp_path: Path) -> Iterator[openai.OpenAI]:
    with open_transaction() as tx:
        register_model(tx, write_policy(tmp_path / "plain", seed=1, spread=0.3), name="plain")
    key = client.headers["Authorization"].removeprefix("Bearer ")
    with (
        served(client.app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as found,
    ):
        yield found


def wait_for_both() -> None:
    """Until both have imported what they need: from then on they ask for requests."""
    deadline = time.monotonic() + START_SECONDS
    with connect() as redis:
        while not redis.exists(REQUESTS) or len(redis.xinfo_consumers(REQUESTS, GROUP)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def kill_the_holder() -> None:
    with connect() as redis:
        [held] = redis.xpending_range(REQUESTS, GROUP, "-", "+", 1)
    with open_session() as session:
        pids = {worker.id: worker.pid for worker in live_workers(session)}
    os.kill(pids[held["consumer"].decode()], signal.SIGKILL)


def test_a_stream_goes_on_with_another_sampler(sdk: openai.OpenAI) -> None:
    with sampler_process(), sampler_process():
        wait_for_both()
        whole = [choice.text for choice in sdk.completions.create(**ASKED).choices]
        stream = sdk.completions.create(**ASKED, stream=True)
        told, reasons = [""] * len(whole), [""] * len(whole)
        for number, chunk in enumerate(stream):
            if number == 0:
                kill_the_holder()
            for choice in chunk.choices:
                told[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert told == whole
    assert all(reasons)
