"""Which calls are sent again, when, and under which key: a lost answer costs nothing and doubles nothing."""

import random
import uuid
from typing import Any

import httpx

from mpo_client.calls import Call

TRIES = 4
_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 30.0
_PASSING = frozenset({429, 500, 502, 503, 504})
# A PUT of the content that is there already changes nothing.
_REPEATABLE = frozenset({"GET", "HEAD", "PUT"})

Outcome = httpx.Response | httpx.TransportError


def new_key() -> str:
    """An Idempotency-Key: one for all tries of a call that makes something."""
    return uuid.uuid4().hex


class Tries:
    """Those of one call."""

    def __init__(self, call: Call[Any]) -> None:
        self._most = TRIES if _may_repeat(call) else 1
        self._answers_with = call.answers_with
        self._count = 0

    def seconds_after(self, outcome: Outcome) -> float | None:
        """Seconds until the next try; None where the outcome stands."""
        self._count += 1
        if self._count == self._most:
            return None
        if isinstance(outcome, httpx.TransportError):
            return None if isinstance(outcome, httpx.UnsupportedProtocol) else backoff_seconds(self._count)
        if outcome.status_code in self._answers_with:
            return None
        return _seconds_to_retry(outcome, self._count)


def _may_repeat(call: Call[Any]) -> bool:
    """Whether the call does the same twice as once."""
    return call.method in _REPEATABLE or call.creates or call.changes_nothing


def _seconds_to_retry(response: httpx.Response, tries: int) -> float | None:
    """Seconds until the next try, after so many; None where it would not help, or take too long."""
    if response.headers.get("x-should-retry") != "true" and response.status_code not in _PASSING:
        return None
    told = response.headers.get("retry-after", "")
    seconds = float(told) if told.isdecimal() else backoff_seconds(tries)
    return seconds if seconds <= _LONGEST_SECONDS else None


def backoff_seconds(tries: int) -> float:
    """Twice as long each time, and scattered: those who were refused together do not come back together."""
    scatter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return float(scatter * _FIRST_SECONDS * 2 ** (tries - 1))
