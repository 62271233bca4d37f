"""Sends calls over HTTP and raises what was refused. Nouns build calls; nobody else knows httpx."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import httpx
from pydantic import BaseModel, JsonValue

from mpo_client import retries
from mpo_client.errors import Unreachable, refusal

T = TypeVar("T", bound=BaseModel)
Query = Mapping[str, str | int | float | None]

_CONNECT_SECONDS = 5.0
# A held answer (`?wait=`) may be this much later than it was asked to be.
_SLACK_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the shape of its answer."""

    method: str
    path: str
    answer: type[T]
    query: Query = field(default_factory=dict)
    body: Mapping[str, JsonValue] | None = None
    content: Iterable[bytes] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    held_seconds: float = 0.0
    creates: bool = False
    """Whether it makes something: then it has an Idempotency-Key, and may be sent again."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """`value` is None where the caller's copy is still good (304)."""

    value: T | None
    etag: str | None


class Transport:
    """One connection pool. Raises Refused's children and Unreachable, nothing of httpx.

    What does the same twice as once is tried again where the service was away, busy or lost the answer.
    """

    def __init__(self, base_url: str, api_key: str, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=base_url, headers={"Authorization": f"Bearer {api_key}"}, transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[T]) -> T:
        value = self.ask(call).value
        assert value is not None, "only a call with If-None-Match is answered by nothing"
        return value

    def ask(self, call: Call[T], etag: str | None = None) -> Answer[T]:
        """As `send`, but with `etag` an unchanged object is not sent again."""
        headers = {**call.headers, **({"If-None-Match": etag} if etag else {})}
        if call.creates:
            headers["Idempotency-Key"] = retries.new_key()
        request = self._http.build_request(
            call.method,
            call.path,
            params=_given(call.query),
            json=call.body,
            content=call.content,
            headers=headers,
            timeout=_timeout(call.held_seconds),
        )
        response = self._sent(
            request, retries.TRIES if retries.may_repeat(call.method, request.headers) else 1
        )
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return Answer(None, etag)
        if response.is_error:
            raise refusal(response)
        return Answer(call.answer.model_validate_json(response.content), response.headers.get("etag"))

    def _sent(self, request: httpx.Request, tries: int) -> httpx.Response:
        """The answer to the request, which is sent at most so many times."""
        for number in range(1, tries + 1):
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                if number == tries:
                    raise self._unreachable(error) from error
                seconds: float | None = retries.backoff_seconds(number)
            else:
                seconds = retries.seconds_to_retry(response, number)
                if seconds is None or number == tries:
                    return response
            time.sleep(seconds or 0.0)
        raise AssertionError("the last try returns or raises")

    def download(self, path: str, to: Path, *, query: Query, accept: str) -> None:
        """Into a file, by and by; a broken download leaves no file of that name."""
        partial = to.with_name(f"{to.name}.partial")
        try:
            with self._http.stream(
                "GET", path, params=_given(query), headers={"Accept": accept}, timeout=_timeout(0.0)
            ) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes(_CHUNK_BYTES):
                        file.write(chunk)
            partial.replace(to)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(str(self._http.base_url), str(error) or type(error).__name__)


def _given(query: Query) -> dict[str, str | int | float]:
    return {name: value for name, value in query.items() if value is not None}


def _timeout(held_seconds: float) -> httpx.Timeout:
    return httpx.Timeout(held_seconds + _SLACK_SECONDS, connect=_CONNECT_SECONDS)
