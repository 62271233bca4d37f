"""What is done to a job from outside: it is cancelled, paused, resumed; and how its stages let go of runs.

Whoever calls these holds the job's row. Lock order: job, then runs in the order of their keys.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select

from core import queue
from core.database import Transaction
from core.events import write_event
from core.states import JobState, StageState
from core.tables import ArtifactReference, Job, Run, StageRow

USER = "user"
"""The reason of a pause of the whole job."""
ENDED_STAGE = frozenset({StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED})


def cancel_job(tx: Transaction, job: Job, stages: Sequence[StageRow]) -> None:
    """End a job whose row the caller holds; runs that it owns are cancelled with it."""
    finish_job(tx, job, stages, JobState.CANCELLED, error=None)


def pause_job(tx: Transaction, job: Job, stages: Sequence[StageRow]) -> None:
    """Hold the whole job until it is resumed; running stages checkpoint and let go."""
    job.pause = {"reason": USER, "stage": None, "message": "Paused by request"}
    for stage in sorted(stages, key=lambda stage: stage.key):
        if stage.run_id is not None and stage.status not in ENDED_STAGE:
            _release_run(tx, job, stage, pause=True)
            stage.status = StageState.PAUSED
    job.status = JobState.PAUSED
    write_event(tx, job, "job.paused", "Paused by request", data=job.pause)


def resume_job(tx: Transaction, job: Job, stages: Sequence[StageRow]) -> None:
    """Lift the job's pause. A stage that was paused looks for work anew: its key's checkpoint is kept."""
    pause = job.pause or {}
    if pause.get("reason") == "weak_reward_model" and _stands(stages, pause["stage"]):
        job.weak_accepted = [*job.weak_accepted, pause["stage"]]
    if pause.get("stage"):
        job.pauses_taken = [*job.pauses_taken, pause["stage"]]
    for stage in sorted(stages, key=lambda stage: stage.key):
        if stage.status == StageState.PAUSED:
            reset_stage(tx, job, stage)
    job.pause, job.status = None, JobState.RUNNING if job.started_at else JobState.QUEUED
    write_event(tx, job, "job.resumed", "Resumed")


def reset_stage(tx: Transaction, job: Job, stage: StageRow) -> None:
    """Put a stage back to waiting: its live run is released, its references dropped."""
    if stage.run_id is not None and stage.status not in ENDED_STAGE:
        _release_run(tx, job, stage)
    tx.session.execute(
        delete(ArtifactReference).where(
            ArtifactReference.job_id == job.id, ArtifactReference.stage_name == stage.name
        )
    )
    # What is scored anew may be as weak, and is then asked about anew.
    job.weak_accepted = [name for name in job.weak_accepted if name != stage.name]
    stage.status, stage.cached, stage.run_id = StageState.WAITING, False, None
    stage.artifacts, stage.summary, stage.error = {}, None, None
    stage.started_at = stage.finished_at = None


def finish_job(
    tx: Transaction, job: Job, stages: Sequence[StageRow], status: JobState, error: dict[str, Any] | None
) -> None:
    """End a job whose row the caller holds, and what of it has not ended."""
    for stage in sorted(stages, key=lambda stage: stage.key):
        if stage.status not in ENDED_STAGE:
            _release_run(tx, job, stage)
            stage.status, stage.finished_at = StageState.CANCELLED, _now()
    job.status, job.error, job.pause, job.finished_at = status, error, None, _now()
    message = f"The job has {status}" if error is None else f"The job has failed: {error.get('message', '')}"
    word = "been cancelled" if status == JobState.CANCELLED else status
    write_event(tx, job, f"job.{status}", message if error else f"The job has {word}", data=error)


def _now() -> datetime:
    return datetime.now(UTC)


def _stands(stages: Sequence[StageRow], name: str) -> bool:
    """Whether what a pause is about is still there: the resume may have reset it."""
    return any(stage.name == name and stage.status == StageState.SUCCEEDED for stage in stages)


def _owns(tx: Transaction, job: Job, run_id: str) -> bool:
    return tx.session.scalar(select(Run.job_id).where(Run.id == run_id)) == job.id


def _release_run(tx: Transaction, job: Job, stage: StageRow, *, pause: bool = False) -> None:
    """Stop the stage's run if it is this job's; another job's run goes on without us."""
    if stage.run_id is None or not _owns(tx, job, stage.run_id):
        return
    if pause:
        queue.pause(tx, stage.run_id)
    else:
        queue.cancel(tx, stage.run_id)
