"""Waits for an object to be done, by answers that the service holds back until the object changes."""

import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from mpo_client.calls import Call, Plan, Sleep, ask
from mpo_client.errors import ClientError, DeadlinePassed, ServerFailed, Unreachable

T = TypeVar("T", bound=BaseModel)

HELD_SECONDS = 30.0
PATIENCE_SECONDS = 120.0
# Between two questions, should the service answer at once instead of holding its answer back.
_LEAST_SECONDS = 0.2
_AWAY_SECONDS = 2.0


class Patience:
    """Bears a service that is away for a while, once it has been there: a restart ends no wait of days."""

    def __init__(self) -> None:
        self._last_heard: float | None = None

    def heard(self) -> None:
        """It has answered."""
        self._last_heard = time.monotonic()

    def bear(self, error: ClientError) -> Sleep:
        """What to do until the next try; raises the error where it is no outage, or lasts too long."""
        is_outage = isinstance(error, Unreachable | ServerFailed)
        if not is_outage or self._last_heard is None:
            raise error
        if time.monotonic() - self._last_heard > PATIENCE_SECONDS:
            raise error
        return Sleep(_AWAY_SECONDS)


def wait_until(
    call: Callable[[float], Call[T]],
    *,
    done: Callable[[T], bool],
    what: str,
    deadline_seconds: float,
    on_change: Callable[[T], None] | None = None,
) -> Plan[T]:
    """Asks `call(seconds to hold)` until its answer is done; tells each change. Raises DeadlinePassed."""
    deadline = time.monotonic() + deadline_seconds
    patience, etag, held = Patience(), None, 0.0
    while True:
        asked_at = time.monotonic()
        try:
            answer = yield from ask(call(held), etag)
        except ClientError as error:
            yield patience.bear(error)
        else:
            patience.heard()
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
        yield Sleep(max(0.0, min(left, _LEAST_SECONDS - (time.monotonic() - asked_at))))
