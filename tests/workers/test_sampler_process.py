"""`python -m workers.sampler` as a process: starts, signs on and off, and takes over from one that died."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.database import open_session
from core.heartbeats import live_workers
from core.sampling import ALIVE, GROUP, REQUESTS, SampleRequest, envelope
from tests.mpo.tiny import write_policy
from tests.sampler import connect, files_of, sampler_process
from workers.sampler_client import SamplerClient

PATIENCE_SECONDS = 60


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signed_on() -> bool:
    with open_session() as session:
        return any(worker.slot == "sampler" for worker in live_workers(session))


def test_a_process_takes_over_from_a_dead_one_and_signs_off(
    settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = SampleRequest(model=files_of(write_policy(tmp_path / "policy")), prompts=["red"], max_tokens=3)
    asked = envelope(request, "gone")
    with connect() as redis:
        # Taken by a sampler that died before it answered.
        redis.xadd(REQUESTS, {"body": asked.model_dump_json()})
        redis.xgroup_create(REQUESTS, GROUP, id="0")
        assert redis.xreadgroup(GROUP, "wrk_dead", {REQUESTS: ">"})
        with sampler_process() as running:
            until(lambda: bool(redis.exists(ALIVE)))
            assert SamplerClient(redis).ask(request).results[0].samples
            until(lambda: redis.xlen(asked.reply_to) == 1)
            until(lambda: redis.xlen(REQUESTS) == 0)
            until(signed_on)
            running.send_signal(signal.SIGTERM)
            assert running.wait(PATIENCE_SECONDS) == 0
        assert not redis.exists(ALIVE)
    assert not signed_on()


def test_a_sampler_that_is_stopped_while_it_imports_leaves_its_requests_to_the_next(
    settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = SampleRequest(model=files_of(write_policy(tmp_path / "policy")), prompts=["red"], max_tokens=3)
    asked = envelope(request, "asking")
    with connect() as redis:
        redis.xadd(REQUESTS, {"body": asked.model_dump_json()})
        with sampler_process() as running:
            # It is announced before it imports what takes seconds.
            until(lambda: bool(redis.exists(ALIVE)))
            until(signed_on)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                running.send_signal(number)
            assert running.wait(PATIENCE_SECONDS) == 0
        assert not redis.exists(ALIVE)
        # Answered before the signal came, or still there: never lost.
        assert redis.xlen(asked.reply_to) + redis.xlen(REQUESTS) == 1
    assert not signed_on()
