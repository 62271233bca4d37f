"""Which calls are sent again, when, and under which key: a lost answer costs nothing and doubles nothing."""

import random
import uuid

import httpx

TRIES = 4
_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 30.0
_PASSING = frozenset({429, 500, 502, 503, 504})
_REPEATABLE = frozenset({"GET", "HEAD"})


def new_key() -> str:
    """An Idempotency-Key: one for all tries of a call that makes something."""
    return uuid.uuid4().hex


def may_repeat(method: str, headers: httpx.Headers) -> bool:
    """Whether the call does the same twice as once."""
    return method in _REPEATABLE or "idempotency-key" in headers


def seconds_to_retry(response: httpx.Response, tries: int) -> float | None:
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
