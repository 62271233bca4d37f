"""Jobs: a spec, and the stages that it expands to."""

from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import BaseModel, JsonValue

from mpo_client.transport import Call, Transport
from mpo_client.waiting import wait_until

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
FINISHED = frozenset({"succeeded", "failed", "cancelled"})


class Failure(BaseModel):
    code: str = ""
    message: str = ""
    output: str | None = None


class Progress(BaseModel):
    step: int | None = None
    total_steps: int | None = None
    fraction: float | None = None
    eta_seconds: float | None = None


class Stage(BaseModel):
    name: str
    kind: str
    status: Literal["waiting", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    cached: bool = False
    run_id: str | None = None
    progress: Progress | None = None
    metrics: dict[str, JsonValue] = {}
    started_at: int | None = None
    finished_at: int | None = None
    error: Failure | None = None


class Pause(BaseModel):
    reason: str
    stage: str | None = None
    message: str | None = None


class Job(BaseModel):
    id: str
    name: str | None = None
    status: Status
    model: str | None = None
    dataset: str | None = None
    stages: list[Stage] = []
    models: dict[str, str] = {}
    pause: Pause | None = None
    progress: Progress | None = None
    error: Failure | None = None

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED


class Report(BaseModel):
    """What came of a job that has succeeded; each part is None where no stage made it."""

    gaps: dict[str, JsonValue] | None = None
    evaluation: dict[str, JsonValue] | None = None


class Jobs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, spec: Mapping[str, JsonValue]) -> Job:
        """Queues the job. Raises NotValid, which names each field that can't stand."""
        return self._transport.send(Call("POST", "/v1/jobs", Job, body=spec, creates=True))

    def get(self, job_id: str, *, wait_seconds: float = 0.0) -> Job:
        """With `wait_seconds` (at most 60) the answer comes once the job changes."""
        return self._transport.send(_get(job_id, wait_seconds))

    def wait(
        self, job_id: str, *, deadline_seconds: float, on_change: Callable[[Job], None] | None = None
    ) -> Job:
        """Until the job is finished, or paused and so in need of someone. Raises DeadlinePassed."""
        return wait_until(
            self._transport,
            lambda held: _get(job_id, held),
            done=lambda job: job.is_finished or job.status == "paused",
            what=f"job {job_id}",
            deadline_seconds=deadline_seconds,
            on_change=on_change,
        )

    def report(self, job_id: str) -> Report:
        """Raises Conflict with code `not_finished` until the job has succeeded."""
        return self._transport.send(Call("GET", f"/v1/jobs/{job_id}/report", Report))

    def cancel(self, job_id: str) -> Job:
        return self._transport.send(Call("POST", f"/v1/jobs/{job_id}/cancel", Job))

    def resume(self, job_id: str, *, split: Mapping[str, JsonValue] | None = None) -> Job:
        """`split` replaces the threshold of a job that paused after its split."""
        body = {"split": dict(split)} if split is not None else None
        return self._transport.send(Call("POST", f"/v1/jobs/{job_id}/resume", Job, body=body))


def _get(job_id: str, wait_seconds: float) -> Call[Job]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", f"/v1/jobs/{job_id}", Job, query=query, held_seconds=wait_seconds)
