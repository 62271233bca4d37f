"""What a noun asks for: calls, and plans of several steps. Nothing here sends; both clients carry it out.

A plan is a generator: it yields steps, is sent their outcomes, and returns its result. So what is asked, in
which order and until when is written once, and blocking and awaiting clients differ in how they send alone.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, JsonValue

T = TypeVar("T", bound=BaseModel)
Result = TypeVar("Result")
Query = Mapping[str, str | int | float | Sequence[str] | None]


class Reply(BaseModel):
    """What the service answers. Fields that a newer service adds are kept, and shown by `model_dump`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Deleted(Reply):
    """The object is gone."""

    id: str
    deleted: bool = True


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the shape of its answer."""

    method: str
    path: str
    answer: type[T]
    query: Query = field(default_factory=dict)
    body: Mapping[str, JsonValue] | None = None
    content: Callable[[], Iterable[bytes]] | None = None
    """Called anew for each try."""
    headers: Mapping[str, str] = field(default_factory=dict)
    held_seconds: float = 0.0
    """For so long the service may take its time to answer."""
    creates: bool = False
    """Whether it makes something: then it has an Idempotency-Key, and may be sent again."""
    changes_nothing: bool = False
    """A POST that only asks may be sent again too."""
    answers_with: frozenset[int] = frozenset()
    """Statuses that are an answer of this shape although they are errors."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """`value` is None where the caller's copy is still good (304)."""

    value: T | None
    etag: str | None


@dataclass(frozen=True)
class Ask:
    """A step: send the call. Its outcome is an Answer."""

    call: Call[Any]
    etag: str | None = None


@dataclass(frozen=True)
class Sleep:
    """A step: let time pass."""

    seconds: float


@dataclass(frozen=True)
class Open:
    """A step: send the call and leave its body to be read, in place of the one that was open before."""

    call: Call[Any]
    lines: bool = False


@dataclass(frozen=True)
class ReadOn:
    """A step: the next line (str) or chunk (bytes) of the open body; None at its end."""


@dataclass(frozen=True)
class Item(Generic[Result]):
    """No step: something for the caller, while the plan goes on."""

    value: Result


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The plan's end, with its result."""

    value: Result


Step = Ask | Sleep | Open | ReadOn
Plan = Generator[Step, Any, Result]
Flow = Generator[Step | Item[Result], Any, None]


def ask(call: Call[T], etag: str | None = None) -> Plan[Answer[T]]:
    """The answer; with `etag` an unchanged object is not sent again."""
    answer: Answer[T] = yield Ask(call, etag)
    return answer


def send(call: Call[T]) -> Plan[T]:
    """The answer's value."""
    answer = yield from ask(call)
    assert answer.value is not None, "only a call with If-None-Match is answered by nothing"
    return answer.value


def chunks(call: Call[Any], take: Callable[[bytes], object]) -> Plan[None]:
    """Hands over the answer's body, chunk by chunk."""
    yield Open(call)
    while (chunk := (yield ReadOn())) is not None:
        take(chunk)


def text(call: Call[Any]) -> Plan[str]:
    """The answer's body as text."""
    parts: list[bytes] = []
    yield from chunks(call, parts.append)
    return b"".join(parts).decode(errors="replace")


def path(*parts: str) -> str:
    """`/v1/…`; what somebody typed stays within its own part."""
    return "/".join(("/v1", *(quote(part, safe=":") for part in parts)))


def given(values: Mapping[str, Result | None]) -> dict[str, Result]:
    """Those that are not None: what is left out is the service's default."""
    return {name: value for name, value in values.items() if value is not None}
