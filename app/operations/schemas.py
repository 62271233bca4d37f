"""Operations on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.authentication import Scope
from app.wire import Body, Seconds, Storable, View


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One thing that the service needs."""

    ok: bool
    message: str


class Readiness(BaseModel):
    """Whether every part is there, each named."""

    ready: bool
    checks: dict[str, Check]


class WorkerView(View):
    """A process that takes work."""

    id: str
    object: Literal["worker"] = "worker"
    slot: str
    concurrency: int
    host: str
    pid: int
    started_at: Seconds
    seen_at: Seconds


class SlotView(BaseModel):
    """The queue of one slot class."""

    slot: Literal["cpu", "gpu"]
    queued: int = 0
    running: int = 0
    paused: int = 0
    workers: int = 0
    concurrency: int = 0
    oldest_queued_seconds: float | None = None


class QueueView(BaseModel):
    """What waits and what runs, by slot class."""

    object: Literal["queue"] = "queue"
    slots: list[SlotView]


class KeyCreate(Body):
    """A key to be made. Without an owner it is the maker's."""

    name: Annotated[Storable, Field(max_length=200)] = ""
    scopes: Annotated[list[Scope], Field(min_length=1)] = Field(default=["read", "write"])
    owner: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")] | None = None
    expires_at: (
        Annotated[int, Field(strict=True, ge=0, le=253_402_300_799, description="Unix seconds.")] | None
    ) = None


class KeyView(View):
    """A key as it is shown once: only its hash is kept. key: null where the answer is a replay."""

    id: str
    object: Literal["api_key"] = "api_key"
    key: str | None
    prefix: str
    name: str
    scopes: list[Scope]
    owner: str
    expires_at: Seconds | None
