"""Carries out plans over HTTP, and blocks meanwhile. Nouns build calls; nobody else knows httpx."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx

from mpo_client import messages, retries
from mpo_client.calls import Answer, Ask, Call, Done, Flow, Item, Open, Plan, Sleep, Step
from mpo_client.errors import ClientError, refusal

R = TypeVar("R")


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

    def carry_out(self, plan: Plan[R]) -> R:
        """The plan's result."""
        outcome: object = None
        with contextlib.closing(plan), _Hands(self) as hands:
            while not isinstance(step := messages.step_after(plan, outcome), Done):
                outcome = hands.take(step)
        result: R = step.value
        return result

    def iterate(self, flow: Flow[R]) -> Iterator[R]:
        """What the flow has for its caller, as it comes."""
        outcome: object = None
        with contextlib.closing(flow), _Hands(self) as hands:
            while not isinstance(step := messages.step_after(flow, outcome), Done):
                if isinstance(step, Item):
                    yield step.value
                    outcome = None
                else:
                    outcome = hands.take(step)

    def ask(self, call: Call[Any], etag: str | None) -> Answer[Any]:
        return messages.read(self._answer(call, etag), call, etag)

    def open(self, call: Call[Any]) -> httpx.Response:
        """The answer, its body not yet read."""
        response = self._answer(call, None, stream=True)
        if not messages.is_answer(response, call):
            with contextlib.closing(response):
                response.read()
            raise refusal(response)
        return response

    def unreachable(self, error: httpx.TransportError) -> ClientError:
        return messages.unreachable(error, self._http.base_url)

    def _answer(self, call: Call[Any], etag: str | None, *, stream: bool = False) -> httpx.Response:
        message, tries = messages.message(call, etag), retries.Tries(call)
        while True:
            outcome = self._try(call, message, stream)
            seconds = tries.seconds_after(outcome)
            if seconds is None:
                return messages.standing(outcome, self._http.base_url)
            if isinstance(outcome, httpx.Response):
                outcome.close()
            time.sleep(seconds)

    def _try(self, call: Call[Any], message: messages.Message, stream: bool) -> retries.Outcome:
        content = call.content() if call.content is not None else None
        try:
            return self._http.send(self._http.build_request(**message, content=content), stream=stream)
        except httpx.TransportError as error:
            return error


class _Hands:
    """Take a plan's steps; hold the body that it has open."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._open = contextlib.ExitStack()
        self._parts: Iterator[str | bytes] = iter(())

    def __enter__(self) -> "_Hands":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def take(self, step: Step) -> object:
        """What comes of it; an error of this package too, for the plan to meet or to let pass."""
        try:
            return self._taken(step)
        except ClientError as error:
            return error
        except httpx.TransportError as error:
            return self._transport.unreachable(error)

    def _taken(self, step: Step) -> object:
        match step:
            case Ask(call, etag):
                return self._transport.ask(call, etag)
            case Sleep(seconds):
                time.sleep(seconds)
                return None
            case Open(call, lines):
                self._open.close()
                response = self._open.enter_context(contextlib.closing(self._transport.open(call)))
                self._parts = response.iter_lines() if lines else response.iter_bytes(messages.CHUNK_BYTES)
                return None
            case _:
                return next(self._parts, None)
