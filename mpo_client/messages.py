"""Calls as HTTP, and answers read: what blocking and awaiting transports share. Sends nothing."""

from typing import Any, TypedDict, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from mpo_client import retries
from mpo_client.calls import Answer, Call, Done, given
from mpo_client.errors import ClientError, NotUnderstood, Unreachable, refusal

T = TypeVar("T", bound=BaseModel)

_CONNECT_SECONDS = 5.0
# A held answer (`?wait=`) may be this much later than it was asked to be.
_SLACK_SECONDS = 30.0
CHUNK_BYTES = 1 << 20


class Message(TypedDict):
    """What httpx builds a request from; its content apart, as that is read anew for each try."""

    method: str
    url: str
    params: Any
    json: Any
    headers: dict[str, str]
    timeout: httpx.Timeout


def message(call: Call[Any], etag: str | None) -> Message:
    """The request: one for all tries, so that they share its Idempotency-Key."""
    headers = {**call.headers, **({"If-None-Match": etag} if etag else {})}
    if call.creates:
        headers["Idempotency-Key"] = retries.new_key()
    return Message(
        method=call.method,
        url=call.path,
        params=given(call.query),
        json=call.body,
        headers=headers,
        timeout=httpx.Timeout(call.held_seconds + _SLACK_SECONDS, connect=_CONNECT_SECONDS),
    )


def unreachable(error: httpx.TransportError, url: httpx.URL) -> Unreachable:
    """What a call raises that no answer came to."""
    return Unreachable(str(url), str(error) or type(error).__name__)


def standing(outcome: retries.Outcome, url: httpx.URL) -> httpx.Response:
    """The answer; raises Unreachable where none came."""
    if isinstance(outcome, httpx.TransportError):
        raise unreachable(outcome, url) from outcome
    return outcome


def is_answer(response: httpx.Response, call: Call[Any]) -> bool:
    """Whether the answer's body is what the call asks for, rather than a problem."""
    return response.is_success or response.status_code in call.answers_with


def read(response: httpx.Response, call: Call[T], etag: str | None) -> Answer[T]:
    """The answer's value; raises Refused's children and NotUnderstood."""
    if response.status_code == httpx.codes.NOT_MODIFIED:
        return Answer(None, etag)
    if not is_answer(response, call):
        raise refusal(response)
    try:
        value = call.answer.model_validate_json(response.content)
    except ValidationError as error:
        raise NotUnderstood(call.method, str(response.request.url)) from error
    return Answer(value, response.headers.get("etag"))


def step_after(plan: Any, outcome: object) -> Any:
    """What the plan wants next, now that this came of its last step: a step, an Item, or Done."""
    try:
        return plan.throw(outcome) if isinstance(outcome, ClientError) else plan.send(outcome)
    except StopIteration as end:
        return Done(end.value)
