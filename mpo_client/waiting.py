"""Waits for an object to be done, by answers that the service holds back until the object changes."""

import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from mpo_client.errors import DeadlinePassed
from mpo_client.transport import Call, Transport

T = TypeVar("T", bound=BaseModel)

HELD_SECONDS = 30.0
# Between two questions, should the service answer at once instead of holding its answer back.
_LEAST_SECONDS = 0.2


def wait_until(
    transport: Transport,
    call: Callable[[float], Call[T]],
    *,
    done: Callable[[T], bool],
    what: str,
    deadline_seconds: float,
    on_change: Callable[[T], None] | None = None,
) -> T:
    """Asks `call(seconds to hold)` until its answer is done; tells each change. Raises DeadlinePassed."""
    deadline = time.monotonic() + deadline_seconds
    etag: str | None = None
    held = 0.0
    while True:
        asked_at = time.monotonic()
        answer = transport.ask(call(held), etag)
        etag = answer.etag
        if answer.value is not None:
            if on_change is not None:
                on_change(answer.value)
            if done(answer.value):
                return answer.value
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed(what, deadline_seconds)
        held = min(HELD_SECONDS, left)
        time.sleep(max(0.0, min(left, _LEAST_SECONDS - (time.monotonic() - asked_at))))
