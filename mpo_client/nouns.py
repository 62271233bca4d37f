"""Turns a noun's plans into methods: of a blocking client that answer, of an awaiting one that are awaited.

A noun's methods are written once, as functions that make a plan. The decorators `answers` and `iterates` read
off the noun's client what a call of such a method gives; types follow.
"""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from mpo_client.async_transport import AsyncTransport
from mpo_client.calls import Flow, Plan
from mpo_client.transport import Transport

P = ParamSpec("P")
R = TypeVar("R")


class Blocking:
    """A noun of `Client`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _carry_out(self, plan: Plan[R]) -> R:
        return self._transport.carry_out(plan)

    def _iterate(self, flow: Flow[R]) -> Iterator[R]:
        return self._transport.iterate(flow)


class Awaiting:
    """A noun of `AsyncClient`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def _carry_out(self, plan: Plan[R]) -> Coroutine[Any, Any, R]:
        return self._transport.carry_out(plan)

    def _iterate(self, flow: Flow[R]) -> AsyncIterator[R]:
        return self._transport.iterate(flow)


class Answers(Generic[P, R]):
    """A method that answers once."""

    def __init__(self, plan: Callable[Concatenate[Any, P], Plan[R]]) -> None:
        self._plan = plan
        self.__doc__ = plan.__doc__

    @overload
    def __get__(self, noun: Blocking, owner: type) -> Callable[P, R]: ...
    @overload
    def __get__(self, noun: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, noun: None, owner: type) -> Self: ...
    def __get__(self, noun: Any, owner: type) -> Any:
        if noun is None:
            return self

        @functools.wraps(self._plan)
        def answer(*args: P.args, **kwargs: P.kwargs) -> Any:
            return noun._carry_out(self._plan(noun, *args, **kwargs))

        return answer


class Iterates(Generic[P, R]):
    """A method that gives one thing after another, and asks for more as they are taken."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[R]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, noun: Blocking, owner: type) -> Callable[P, Iterator[R]]: ...
    @overload
    def __get__(self, noun: Awaiting, owner: type) -> Callable[P, AsyncIterator[R]]: ...
    @overload
    def __get__(self, noun: None, owner: type) -> Self: ...
    def __get__(self, noun: Any, owner: type) -> Any:
        if noun is None:
            return self

        @functools.wraps(self._flow)
        def iterate(*args: P.args, **kwargs: P.kwargs) -> Any:
            return noun._iterate(self._flow(noun, *args, **kwargs))

        return iterate


def answers(plan: Callable[Concatenate[Any, P], Plan[R]]) -> Answers[P, R]:
    """Decorates a method that makes a plan."""
    return Answers(plan)


def iterates(flow: Callable[Concatenate[Any, P], Flow[R]]) -> Iterates[P, R]:
    """Decorates a method that makes a flow."""
    return Iterates(flow)
