"""Work as it enters the queue, as it is held, and as it leaves: what `core.queue` takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class NewRun:
    """Work to be queued. age: when the job that wants it was made; older goes first. id: made where None.

    request_id: of the HTTP request that made its job; without a job it is the one being answered.
    """

    kind: str
    slot: str
    owner: str
    subject_id: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    seed: int = 0
    key: str | None = None
    job_id: str | None = None
    priority: int = 0
    age: datetime | None = None
    rank: int = 0
    id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class ClaimedRun:
    """A run that this process holds as long as its fence is the newest."""

    id: str
    fence: int
    kind: str
    slot: str
    owner: str
    subject_id: str
    job_id: str | None
    key: str | None
    config: dict[str, Any]
    inputs: dict[str, list[dict[str, Any]]]
    seed: int
    attempt: int
    checkpoint: dict[str, Any] | None
    request_id: str | None
    queued_at: datetime
    claimed_at: datetime


@dataclass(frozen=True)
class NewArtifact:
    """An output to publish; `location` is its file or folder in the store."""

    output: str
    location: str
    sha256: str
    bytes: int
    files: list[dict[str, Any]]
    inputs: list[dict[str, Any]]
    versions: dict[str, str]
    hardware: str
    wall_seconds: float
    peak_memory_bytes: int
