"""Idempotency-Key: one answer for one key and body, of every POST that creates.

Only what was committed is kept: an error, a 429 or a crash leaves the key free, and the next try does the
work.
Twins in one process take turns on the event loop, so that however many there are hold one thread and one
connection; twins in several processes wait in the database.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any
from weakref import WeakValueDictionary

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.problems import responses
from core.database import Transaction, open_transaction
from core.idempotency import KeptAnswer, Keyed, KeyPlace, TwinInProgress, keep_answer, take_key

PATIENCE_SECONDS = 2.0
REPLAYED = "Idempotent-Replayed"

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Any text of your own, new for each thing to be made, such as a UUID. The same key and "
        "body again within 24 hours give the same answer, and nothing is made twice; another body is 422.",
    ),
]


@dataclass(frozen=True)
class Made:
    """What a request has made, and how it is told. kept: what a replay shows instead of a secret."""

    view: BaseModel
    status: int
    location: str
    headers: Mapping[str, str] = field(default_factory=dict)
    kept: BaseModel | None = None


Together = Callable[[Keyed | None], Awaitable[Response | None]]


class Once:
    """One request that makes something, at most once for its key."""

    def __init__(self, request: Request, key: Key = None) -> None:
        self._request, self._key = request, key

    async def answer(
        self,
        owner: str,
        make: Callable[[Transaction], Made],
        fingerprint: bytes | None = None,
        together: Together | None = None,
    ) -> Response:
        """Make it and answer, or answer as before. fingerprint: the body's, where it is no JSON text.

        together: is asked first, and makes it by what it shares with other requests, its key's row too; where
        it answers None, it is made by itself. Raises KeyReused, TwinInProgress, and what `make` raises.
        """
        if self._key is None:
            made = await together(None) if together is not None else None
            return made if made is not None else await run_in_threadpool(_make, make)
        body = b"" if fingerprint is not None else await self._request.body()
        place = KeyPlace(owner, self._request.url.path, self._key)
        deadline = time.monotonic() + PATIENCE_SECONDS
        twins: WeakValueDictionary[KeyPlace, asyncio.Lock] = self._request.app.state.twins
        turn = twins.setdefault(place, asyncio.Lock())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await turn.acquire()
        except TimeoutError:
            raise TwinInProgress() from None
        try:
            keyed = Keyed(place, fingerprint or fingerprint_of(body))
            made = await together(keyed) if together is not None else None
            if made is not None:
                return made
            return await run_in_threadpool(_make_once, make, keyed, deadline)
        finally:
            turn.release()


async def _once(request: Request, key: Key = None) -> Once:
    return Once(request, key)


OnceDep = Annotated[Once, Depends(_once)]


def fingerprint_of(body: bytes) -> bytes:
    """SHA-256 of a JSON text, however it is spaced and its fields ordered; of the bytes where it is none."""
    with suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(body).digest()


def creates(status: int, *refusals: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's text of the answers of a route that creates: `status`, and the problems it can give."""
    schema = {"schema": {"type": "string", "const": "true"}}
    headers = {
        "Location": {"description": "Path of what was made", "schema": {"type": "string"}},
        REPLAYED: {"description": "The answer was given before, under this Idempotency-Key", **schema},
    }
    return {status: {"headers": headers}, **responses(409, *refusals)}


def _make(make: Callable[[Transaction], Made]) -> Response:
    with open_transaction() as tx:
        made = make(tx)
        body = made.view.model_dump_json()
    return Response(body, made.status, _headers(made), media_type="application/json")


def _make_once(make: Callable[[Transaction], Made], keyed: Keyed, deadline: float) -> Response:
    with open_transaction() as tx:
        kept = take_key(tx, keyed.place, keyed.fingerprint, deadline - time.monotonic())
        if kept is not None:
            headers = {**kept.headers, REPLAYED: "true"}
            return Response(kept.body, kept.status, headers, media_type="application/json")
        made = make(tx)
        body = made.view.model_dump_json()
        shown_again = body if made.kept is None else made.kept.model_dump_json()
        keep_answer(tx, keyed.place, KeptAnswer(made.status, _headers(made), shown_again))
    return Response(body, made.status, _headers(made), media_type="application/json")


def _headers(made: Made) -> dict[str, str]:
    return {"Location": made.location, **made.headers}
