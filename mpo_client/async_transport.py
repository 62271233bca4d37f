"""Carries out plans over HTTP for asyncio: as `transport.py` does, but it awaits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import httpx

from mpo_client import messages, retries
from mpo_client.calls import Answer, Ask, Call, Done, Flow, Item, Open, Plan, Sleep, Step
from mpo_client.errors import ClientError, refusal

R = TypeVar("R")


class AsyncTransport:
    """One connection pool. Raises Refused's children and Unreachable, nothing of httpx.

    Files are read and written between two awaits, a MiB at a time: a loop that can't wait for a disk should
    upload and download in a thread, by the blocking client.
    """

    def __init__(
        self, base_url: str, api_key: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, headers={"Authorization": f"Bearer {api_key}"}, transport=transport
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def carry_out(self, plan: Plan[R]) -> R:
        """The plan's result."""
        outcome: object = None
        with contextlib.closing(plan):
            async with _Hands(self) as hands:
                while not isinstance(step := messages.step_after(plan, outcome), Done):
                    outcome = await hands.take(step)
        result: R = step.value
        return result

    async def iterate(self, flow: Flow[R]) -> AsyncIterator[R]:
        """What the flow has for its caller, as it comes."""
        outcome: object = None
        with contextlib.closing(flow):
            async with _Hands(self) as hands:
                while not isinstance(step := messages.step_after(flow, outcome), Done):
                    if isinstance(step, Item):
                        yield step.value
                        outcome = None
                    else:
                        outcome = await hands.take(step)

    async def ask(self, call: Call[Any], etag: str | None) -> Answer[Any]:
        return messages.read(await self._answer(call, etag), call, etag)

    async def open(self, call: Call[Any]) -> httpx.Response:
        """The answer, its body not yet read."""
        response = await self._answer(call, None, stream=True)
        if not messages.is_answer(response, call):
            async with contextlib.aclosing(response):
                await response.aread()
            raise refusal(response)
        return response

    def unreachable(self, error: httpx.TransportError) -> ClientError:
        return messages.unreachable(error, self._http.base_url)

    async def _answer(self, call: Call[Any], etag: str | None, *, stream: bool = False) -> httpx.Response:
        message, tries = messages.message(call, etag), retries.Tries(call)
        while True:
            outcome = await self._try(call, message, stream)
            seconds = tries.seconds_after(outcome)
            if seconds is None:
                return messages.standing(outcome, self._http.base_url)
            if isinstance(outcome, httpx.Response):
                await outcome.aclose()
            await asyncio.sleep(seconds)

    async def _try(self, call: Call[Any], message: messages.Message, stream: bool) -> retries.Outcome:
        content = _awaited(call.content()) if call.content is not None else None
        try:
            return await self._http.send(self._http.build_request(**message, content=content), stream=stream)
        except httpx.TransportError as error:
            return error


async def _awaited(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


class _Hands:
    """Take a plan's steps; hold the body that it has open."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._open: httpx.Response | None = None
        self._parts: AsyncIterator[str | bytes] = _nothing()

    async def __aenter__(self) -> "_Hands":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def take(self, step: Step) -> object:
        """What comes of it; an error of this package too, for the plan to meet or to let pass."""
        try:
            return await self._taken(step)
        except ClientError as error:
            return error
        except httpx.TransportError as error:
            return self._transport.unreachable(error)

    async def _taken(self, step: Step) -> object:
        match step:
            case Ask(call, etag):
                return await self._transport.ask(call, etag)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
                return None
            case Open(call, lines):
                await self._close()
                self._open = opened = await self._transport.open(call)
                self._parts = opened.aiter_lines() if lines else opened.aiter_bytes(messages.CHUNK_BYTES)
                return None
            case _:
                return await anext(self._parts, None)

    async def _close(self) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            await opened.aclose()
