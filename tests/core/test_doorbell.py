"""Rings reach the broker from a thread of their own, as few messages as slot classes and pauses allow."""

import threading
import time
from collections.abc import Callable

import pytest
import redis

from core import doorbell
from core.doorbell import queue_name, ring
from core.settings import settings

pytestmark = pytest.mark.usefixtures("settings_env")
PATIENCE_SECONDS = 20


def test_a_burst_of_rings_becomes_few_messages_and_the_last_ring_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    heard, go_on = threading.Event(), threading.Event()

    def slow_broker(slot: str) -> None:
        sent.append(slot)
        heard.set()
        assert go_on.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(doorbell, "_send", slow_broker)
    bell = doorbell._Bell()
    bell.ring({"cpu"})
    assert heard.wait(PATIENCE_SECONDS)
    for _ in range(100):
        bell.ring({"cpu"})
        bell.ring({"gpu"})
    go_on.set()
    _wait_for(lambda: len(sent) >= 3)
    assert sent == ["cpu", "cpu", "gpu"]


def test_a_ring_is_a_message_in_the_slot_s_queue(redis_url: str) -> None:
    ring(["gpu"])
    with redis.Redis.from_url(settings().redis_url.get_secret_value()) as server:
        _wait_for(lambda: server.llen(queue_name("gpu")) == 1)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
