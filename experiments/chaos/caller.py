"""A patient client: the same request under the same Idempotency-Key until it is answered."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from experiments.chaos.ledger import Ledger

TIMEOUT_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 0.05
PATIENCE_SECONDS = 120.0
NOT_SUFFERED = frozenset({429, 503})
"""Answers that say: come again."""


class Caller:
    """One client of one thread. Gives up `PATIENCE_SECONDS` after the faults have ended, never before."""

    def __init__(self, url: str, key: str, ledger: Ledger, calm: threading.Event) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_SECONDS
        )
        self._ledger, self._calm = ledger, calm

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response | None:
        """The first answer that is one: below 500, and neither 429 nor a 409 that says to try again."""
        return self._again(lambda: self._http.request(method, path, **request), f"{method} {path}")

    def create(self, path: str, key: str, **request: Any) -> httpx.Response | None:
        """A POST under an Idempotency-Key."""
        return self.ask("POST", path, headers={"Idempotency-Key": key}, **request)

    def _again(self, send: Callable[[], httpx.Response], what: str) -> httpx.Response | None:
        pause, calm_since = FIRST_PAUSE_SECONDS, None
        while True:
            answer = self._once(send, what)
            if answer is not None:
                return answer
            if self._calm.is_set():
                calm_since = calm_since or time.monotonic()
                if time.monotonic() - calm_since > PATIENCE_SECONDS:
                    self._ledger.heard("gave up", f"{what}: no answer though the faults are over")
                    return None
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _once(self, send: Callable[[], httpx.Response], what: str) -> httpx.Response | None:
        try:
            answer = send()
        except httpx.TransportError as error:
            self._ledger.heard(type(error).__name__)
            return None
        status = answer.status_code
        self._ledger.heard(str(status), _complaint(answer, what))
        if status >= 500 or status == 429:
            return None
        retried = status == 409 and answer.headers.get("x-should-retry") == "true"
        return None if retried else answer


def _complaint(answer: httpx.Response, what: str) -> str:
    """What is wrong with an answer that nobody should be given; empty where nothing is."""
    status = answer.status_code
    if status >= 500 and status not in NOT_SUFFERED:
        return f"{what}: {status} {answer.text[:300]}"
    if status in NOT_SUFFERED and "retry-after" not in answer.headers:
        return f"{what}: {status} without Retry-After"
    return ""
