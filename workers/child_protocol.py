"""What a worker and its child say to each other over a pipe. Torch-free; pickled between our processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpo.token_cache import TokenCache


@dataclass(frozen=True)
class ChildInput:
    """An input of a run: its row as enqueued, and the local file or folder it was fetched to."""

    name: str
    path: Path
    source: Mapping[str, Any]


@dataclass(frozen=True)
class ChildTask:
    """Everything that a child needs; it has no database credentials."""

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[ChildInput, ...]]
    output: Path
    seed: int
    resume: Path | None
    log: Path
    torch_threads: int
    redis_url: str
    log_fields: Mapping[str, str | int] = field(default_factory=dict)
    """What the worker binds to its own log lines of this run."""
    ranks: int = 1
    """Processes that may train together."""
    sharded: bool = False
    """Whether each of them is to hold a part of the weights in training, in place of all."""
    tokens: TokenCache | None = None
    """Where this machine's children share token ids."""


@dataclass(frozen=True)
class Progress:
    """A step has ended."""

    step: int
    total_steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Warned:
    """A person should read this."""

    message: str


@dataclass(frozen=True)
class Checkpointed:
    """A complete folder to resume from; the child waits for the worker's word that it is kept."""

    folder: Path
    step: int


@dataclass(frozen=True)
class Rows:
    """Rows of a comparison, as they come."""

    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Done:
    """The outputs and summary.json are in the output folder."""

    peak_memory_bytes: int
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""


@dataclass(frozen=True)
class Stopped:
    """The child stopped as it was asked to, having saved what it could."""


@dataclass(frozen=True)
class Failed:
    """The work cannot be done. facts: what the error carried, where JSON can say it."""

    code: str
    message: str
    retryable: bool
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Crashed:
    """The process ended without a word."""

    exit_code: int | None


Report = Progress | Warned | Checkpointed | Rows | Done | Stopped | Failed
Outcome = Done | Stopped | Failed | Crashed
