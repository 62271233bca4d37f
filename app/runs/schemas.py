"""Runs on the wire."""

from typing import Any, Literal

from pydantic import BaseModel

from app.wire import Seconds
from core.states import RunState


class RunError(BaseModel):
    """Why a run failed; output is the end of what its process printed."""

    code: str
    message: str
    output: str | None = None


class Try(BaseModel):
    """A run that did, or was to do, the same work: a cancelled or paused one is taken up by another run."""

    run_id: str
    status: RunState
    attempt: int
    created_at: Seconds
    started_at: Seconds | None
    finished_at: Seconds | None
    error: RunError | None


class RunView(BaseModel):
    """The execution of one unit of work. attempt: 1, and one more for each crash since."""

    id: str
    object: Literal["run"] = "run"
    kind: str
    status: RunState
    slot: Literal["cpu", "gpu"]
    job: str | None
    subject: str
    key: str | None
    config: dict[str, Any]
    seed: int
    priority: int
    attempt: int
    crashes_without_progress: int
    leases_lost_without_progress: int
    attempts: list[Try]
    worker: str | None
    checkpoint_step: int | None
    progress: dict[str, Any] | None
    metrics: dict[str, Any] | None
    summary: dict[str, Any] | None
    artifacts: dict[str, str]
    created_at: Seconds
    started_at: Seconds | None
    finished_at: Seconds | None
    error: RunError | None
