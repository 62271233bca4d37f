"""What holds a job: datasets that are not ready, weak reward models, pauses that were asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from core.database import Transaction
from core.events import write_event
from core.states import DatasetState, JobState, StageState
from core.tables import Dataset, Job, JobInput, StageRow

Failure = dict[str, Any]
"""A job's `error`: {"code", "message"}, and what else is known."""


def dataset_states(tx: Transaction, job: Job) -> dict[str, str]:
    """The state of each dataset that the job reads."""
    ids = select(JobInput.name).where(JobInput.job_id == job.id, JobInput.kind == "dataset")
    found = select(Dataset.id, Dataset.status).where(Dataset.id.in_(ids)).order_by(Dataset.id)
    return {row.id: row.status for row in tx.session.execute(found)}


def failure_of(stages: Sequence[StageRow], datasets: Mapping[str, str]) -> Failure | None:
    """Why the job can never succeed: a stage has failed, or the rows will never be there."""
    failed = next((s for s in stages if s.status == StageState.FAILED), None)
    if failed is not None:
        return {**(failed.error or {}), "stage": failed.name}
    for dataset_id, status in datasets.items():
        if status == DatasetState.INVALID:
            message = f"{dataset_id} is invalid: see /v1/datasets/{dataset_id}/report"
            return {"code": "dataset_invalid", "message": message}
    return None


def weak_failure(job: Job, stages: Sequence[StageRow]) -> Failure | None:
    """Why the job fails where its score stage is told to fail on weak reward models."""
    for stage in stages:
        if is_weak(job, stage) and stage.config.get("on_weak") == "fail":
            return {"code": "weak_reward_model", "message": weak_reason(stage)}
    return None


def take_pauses(tx: Transaction, job: Job, stages: Sequence[StageRow]) -> None:
    """Pause the job where reward models are no better than chance or length, or where it was asked for."""
    for stage in stages:
        if job.pause is None and is_weak(job, stage):
            _pause_at(tx, job, stage, "weak_reward_model", weak_reason(stage))
    for stage in stages:
        asked = stage.name in job.pause_after and stage.name not in job.pauses_taken
        if job.pause is None and asked and stage.status == StageState.SUCCEEDED:
            message = f"{stage.name} has succeeded: look at it, then resume"
            _pause_at(tx, job, stage, "pause_after", message)


def held_names(job: Job, stages: Sequence[StageRow]) -> set[str]:
    """Stages that nothing may build on before the job is resumed."""
    held = {s.name for s in stages if s.name in job.pause_after and s.name not in job.pauses_taken}
    if job.pause and job.pause["stage"]:
        held.add(job.pause["stage"])
    # Also where the job pauses for another reason already.
    held |= {s.name for s in stages if is_weak(job, s)}
    return held


def is_weak(job: Job, stage: StageRow) -> bool:
    """Whether the stage found its reward models weak, that holds the job, and nobody has accepted it."""
    on_weak = stage.config.get("on_weak")
    accepted = on_weak == "warn" or (on_weak != "fail" and stage.name in job.weak_accepted)
    return found_weak(stage) and not accepted


def found_weak(stage: StageRow) -> bool:
    scored = stage.kind == "score" and stage.status == StageState.SUCCEEDED
    return scored and bool((stage.summary or {}).get("weak"))


def weak_reason(stage: StageRow) -> str:
    return str((stage.summary or {}).get("weak_reason", ""))


def _pause_at(tx: Transaction, job: Job, stage: StageRow, reason: str, message: str) -> None:
    job.pause = {"reason": reason, "stage": stage.name, "message": message}
    job.status = JobState.PAUSED
    write_event(tx, job, "job.paused", message, stage=stage.name, data=job.pause)
