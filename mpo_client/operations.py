"""Keys, and how the service itself is."""

from collections.abc import Sequence
from typing import Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Deleted, Plan, Reply, given, path, send
from mpo_client.nouns import Awaiting, Blocking, answers

Scope = Literal["read", "write", "admin"]


class Key(Reply):
    """`key` is shown once: only its hash is kept. None where a first answer was lost: make another."""

    id: str
    key: str | None = None
    prefix: str
    name: str = ""
    scopes: list[Scope] = []
    owner: str
    expires_at: int | None = None


class Worker(Reply):
    id: str
    slot: str
    concurrency: int
    host: str
    pid: int
    started_at: int
    seen_at: int


class _Workers(Reply):
    data: list[Worker]


class Slot(Reply):
    slot: str
    queued: int = 0
    running: int = 0
    paused: int = 0
    workers: int = 0
    concurrency: int = 0
    oldest_queued_seconds: float | None = None


class _Queue(Reply):
    slots: list[Slot]


class Health(Reply):
    status: str


class Check(Reply):
    ok: bool
    message: str


class Readiness(Reply):
    """Every part that the service needs, by name."""

    ready: bool
    checks: dict[str, Check]


class KeyMethods:
    """What both clients can do with keys; both need an admin's key."""

    @answers
    def create(
        self,
        *,
        name: str = "",
        scopes: Sequence[Scope] | None = None,
        owner: str | None = None,
        expires_at: int | None = None,
    ) -> Plan[Key]:
        """scopes: read and write where None. owner: the maker where None. expires_at: Unix seconds."""
        optional: dict[str, JsonValue | None] = {
            "scopes": None if scopes is None else [*scopes],
            "owner": owner,
            "expires_at": expires_at,
        }
        body: dict[str, JsonValue] = {"name": name, **given(optional)}
        return send(Call("POST", path("keys"), Key, body=body, creates=True))

    @answers
    def delete(self, key_id: str) -> Plan[Deleted]:
        """From now on it opens nothing."""
        return send(Call("DELETE", path("keys", key_id), Deleted))


class OperationMethods:
    """What both clients can ask about the service."""

    @answers
    def health(self) -> Plan[Health]:
        """That the process answers."""
        return send(Call("GET", "/healthz", Health))

    @answers
    def ready(self) -> Plan[Readiness]:
        """Whether every part is there; raises nothing where one is missing."""
        return send(Call("GET", "/readyz", Readiness, answers_with=frozenset({503})))

    @answers
    def workers(self) -> Plan[Sequence[Worker]]:
        """Those that have been heard of lately."""
        return (yield from send(Call("GET", path("workers"), _Workers))).data

    @answers
    def queue(self) -> Plan[Sequence[Slot]]:
        """How many runs wait and run in each slot class."""
        return (yield from send(Call("GET", path("queue"), _Queue))).slots


class Keys(Blocking, KeyMethods):
    """Of a Client."""


class AsyncKeys(Awaiting, KeyMethods):
    """Of an AsyncClient."""


class Operations(Blocking, OperationMethods):
    """Of a Client."""


class AsyncOperations(Awaiting, OperationMethods):
    """Of an AsyncClient."""
