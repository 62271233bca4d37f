"""`advance_job`: the only function that moves a job to its next stages. Idempotent.

Called after create, claim, publish, fail, cancel, pause, resume, and by recovery. Lock order: job, then run.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, select

from core import queue
from core.database import Transaction
from core.events import write_event
from core.states import FINISHED_JOB, DatasetState, JobState, RunState, StageState
from core.tables import ArtifactReference, Dataset, Job, JobInput, Run, StageRow
from core.work_lookup import find_work, hold_artifacts

ENDED_STAGE = frozenset({StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED})


def advance_job(tx: Transaction, job_id: str) -> None:
    """Read what the job's runs became, mark what is cached, enqueue what is ready, set the job's status."""
    job = lock_job(tx, job_id)
    if job is None or job.status in FINISHED_JOB:
        return
    stages = stages_of(tx, job)
    for stage in stages:
        _apply_run(tx, job, stage)
    failed = next((s for s in stages if s.status == StageState.FAILED), None)
    if failed is not None:
        _finish(tx, job, stages, JobState.FAILED, error={**(failed.error or {}), "stage": failed.name})
        return
    if not _datasets_ready(tx, job, stages) or not _passes_gate(tx, job, stages):
        return
    _take_pauses(tx, job, stages)
    _start_ready_stages(tx, job, stages)
    _take_pauses(tx, job, stages)
    _set_status(tx, job, stages)


def lock_job(tx: Transaction, job_id: str) -> Job | None:
    """The job's row, held until the transaction ends."""
    return tx.session.scalar(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    )


def stages_of(tx: Transaction, job: Job) -> list[StageRow]:
    """The job's stages, each after its inputs."""
    return list(
        tx.session.scalars(
            select(StageRow)
            .where(StageRow.job_id == job.id)
            .order_by(StageRow.position)
            .execution_options(populate_existing=True)
        )
    )


def cancel_job(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    """End a job whose row the caller holds; runs that it owns are cancelled with it."""
    _finish(tx, job, stages, JobState.CANCELLED, error=None)


def pause_job(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    """Hold the whole job until it is resumed; running stages checkpoint and let go."""
    job.pause = {"reason": "user", "stage": None, "message": "Paused by request"}
    for stage in stages:
        if stage.run_id is not None and stage.status not in ENDED_STAGE:
            _release_run(tx, job, stage, pause=True)
            stage.status = StageState.PAUSED
    job.status = JobState.PAUSED
    write_event(tx, job, "job.paused", "Paused by request", data=job.pause)


def resume_job(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    """Lift the job's pause. A stage that was paused looks for work anew: its key's checkpoint is kept."""
    pause = job.pause or {}
    if pause.get("reason") == "weak_reward_model" and _stands(stages, pause["stage"]):
        job.weak_accepted = [*job.weak_accepted, pause["stage"]]
    if pause.get("stage"):
        job.pauses_taken = [*job.pauses_taken, pause["stage"]]
    for stage in stages:
        if stage.status == StageState.PAUSED:
            if stage.run_id is not None and _owns(tx, job, stage.run_id):
                queue.cancel(tx, stage.run_id)
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


def jobs_waiting_on(tx: Transaction, run: Run) -> list[str]:
    """Ids of the jobs that a run's change concerns: its own, and each with a stage that waits for it."""
    concerned: ColumnElement[bool]
    if run.kind == "validate_dataset":
        reads_it = JobInput.kind == "dataset", JobInput.name == run.subject_id
        concerned = Job.id.in_(select(JobInput.job_id).where(*reads_it))
    else:
        concerned = Job.id.in_(select(StageRow.job_id).where(StageRow.run_id == run.id))
    statement = select(Job.id).where(concerned, Job.status.not_in(FINISHED_JOB)).order_by(Job.id)
    return list(tx.session.scalars(statement))


def _now() -> datetime:
    return datetime.now(UTC)


def _stands(stages: list[StageRow], name: str) -> bool:
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


def _apply_run(tx: Transaction, job: Job, stage: StageRow) -> None:
    """Carry the state of a stage's run over to the stage."""
    if stage.run_id is None or stage.status in ENDED_STAGE or stage.status == StageState.PAUSED:
        return
    run = tx.session.get_one(Run, stage.run_id, populate_existing=True)
    if run.state == stage.status:
        return
    if run.state in (RunState.CANCELLED, RunState.PAUSED):
        # Another job's run that was taken away: this job looks for the same work anew.
        stage.status, stage.run_id = StageState.WAITING, None
        return
    stage.status = StageState(run.state)
    if run.state == RunState.RUNNING:
        stage.started_at = run.started_at
        write_event(tx, job, "stage.started", f"{stage.name} has started", stage=stage.name)
    elif run.state == RunState.SUCCEEDED:
        _succeed(tx, job, stage, cached=False)
    elif run.state == RunState.FAILED:
        stage.error, stage.finished_at = run.error, run.finished_at
        message = (run.error or {}).get("message", "")
        write_event(tx, job, "stage.failed", f"{stage.name} failed: {message}", stage=stage.name)


def _succeed(tx: Transaction, job: Job, stage: StageRow, *, cached: bool) -> None:
    artifacts = hold_artifacts(tx, job, stage)
    if not artifacts:
        # Deleted between its publication and now: the work is looked for anew.
        stage.status, stage.run_id = StageState.WAITING, None
        return
    run = tx.session.get_one(Run, next(iter(artifacts.values())).run_id, populate_existing=True)
    stage.status, stage.cached = StageState.SUCCEEDED, cached
    stage.artifacts = {output: artifact.id for output, artifact in artifacts.items()}
    stage.run_id, stage.summary = run.id, run.summary
    stage.started_at = _now() if cached else run.started_at
    stage.finished_at = _now() if cached else run.finished_at
    kind, verb = ("stage.cached", "is cached") if cached else ("stage.succeeded", "has succeeded")
    write_event(tx, job, kind, f"{stage.name} {verb}", stage=stage.name)
    if _found_weak(stage) and stage.config.get("on_weak") == "warn":
        write_event(tx, job, "stage.warning", _weak_reason(stage), stage=stage.name)


def _datasets_ready(tx: Transaction, job: Job, stages: list[StageRow]) -> bool:
    """Whether the rows are there; fails the job where they never will be."""
    ids = select(JobInput.name).where(JobInput.job_id == job.id, JobInput.kind == "dataset")
    found = select(Dataset.id, Dataset.status).where(Dataset.id.in_(ids)).order_by(Dataset.id)
    states = tx.session.execute(found).all()
    for dataset_id, status in states:
        if status == DatasetState.INVALID:
            message = f"{dataset_id} is invalid: see /v1/datasets/{dataset_id}/report"
            _finish(tx, job, stages, JobState.FAILED, error={"code": "dataset_invalid", "message": message})
            return False
    return all(status == DatasetState.READY for _, status in states)


def _passes_gate(tx: Transaction, job: Job, stages: list[StageRow]) -> bool:
    """Apply on_weak to a score stage that found its reward models no better than chance or length."""
    for stage in stages:
        if not _is_weak(job, stage):
            continue
        message = _weak_reason(stage)
        if stage.config.get("on_weak") == "fail":
            _finish(tx, job, stages, JobState.FAILED, error={"code": "weak_reward_model", "message": message})
            return False
        if job.pause is None:
            _pause_at(tx, job, stage, "weak_reward_model", message)
    return True


def _take_pauses(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    for stage in stages:
        asked = stage.name in job.pause_after and stage.name not in job.pauses_taken
        if asked and stage.status == StageState.SUCCEEDED and job.pause is None:
            message = f"{stage.name} has succeeded: look at it, then resume"
            _pause_at(tx, job, stage, "pause_after", message)


def _pause_at(tx: Transaction, job: Job, stage: StageRow, reason: str, message: str) -> None:
    job.pause = {"reason": reason, "stage": stage.name, "message": message}
    job.status = JobState.PAUSED
    write_event(tx, job, "job.paused", message, stage=stage.name, data=job.pause)


def _start_ready_stages(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    """Cached stages may make others ready, so this goes round until nothing moves."""
    moved = True
    while moved and not (job.pause and job.pause["reason"] == "user"):
        moved = False
        held = _held_names(job, stages)
        done = {s.name for s in stages if s.status == StageState.SUCCEEDED}
        for stage in stages:
            if stage.status == StageState.WAITING and _needs(stage) <= done - held:
                _start(tx, job, stage, stages)
                moved = moved or stage.status == StageState.SUCCEEDED
        if moved:
            _take_pauses(tx, job, stages)


def _held_names(job: Job, stages: list[StageRow]) -> set[str]:
    """Stages that nothing may build on before the job is resumed."""
    held = {s.name for s in stages if s.name in job.pause_after and s.name not in job.pauses_taken}
    if job.pause and job.pause["stage"]:
        held.add(job.pause["stage"])
    # Also where the job pauses for another reason already.
    held |= {s.name for s in stages if _is_weak(job, s)}
    return held


def _is_weak(job: Job, stage: StageRow) -> bool:
    """Whether the stage found its reward models weak, that holds the job, and nobody has accepted it."""
    on_weak = stage.config.get("on_weak")
    accepted = on_weak == "warn" or (on_weak != "fail" and stage.name in job.weak_accepted)
    return _found_weak(stage) and not accepted


def _found_weak(stage: StageRow) -> bool:
    scored = stage.kind == "score" and stage.status == StageState.SUCCEEDED
    return scored and bool((stage.summary or {}).get("weak"))


def _weak_reason(stage: StageRow) -> str:
    return str((stage.summary or {}).get("weak_reason", ""))


def _needs(stage: StageRow) -> set[str]:
    return {s["name"] for sources in stage.inputs.values() for s in sources if s["kind"] == "stage"}


def _start(tx: Transaction, job: Job, stage: StageRow, stages: list[StageRow]) -> None:
    run_id = find_work(tx, job, stage, stages)
    if run_id is None:
        _succeed(tx, job, stage, cached=True)
        return
    stage.run_id, stage.status = run_id, StageState.QUEUED
    _apply_run(tx, job, stage)


def _set_status(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    if all(stage.status == StageState.SUCCEEDED for stage in stages) and job.pause is None:
        _finish(tx, job, stages, JobState.SUCCEEDED, error=None)
        return
    begun = any(stage.status in (StageState.RUNNING, StageState.SUCCEEDED) for stage in stages)
    if begun and job.started_at is None:
        job.started_at = _now()
        write_event(tx, job, "job.started", "The job has started")
    job.status = JobState.PAUSED if job.pause else JobState.RUNNING if job.started_at else JobState.QUEUED


def _finish(
    tx: Transaction, job: Job, stages: list[StageRow], status: JobState, error: dict[str, Any] | None
) -> None:
    for stage in stages:
        if stage.status not in ENDED_STAGE:
            _release_run(tx, job, stage)
            stage.status, stage.finished_at = StageState.CANCELLED, _now()
    job.status, job.error, job.pause, job.finished_at = status, error, None, _now()
    message = f"The job has {status}" if error is None else f"The job has failed: {error.get('message', '')}"
    word = "been cancelled" if status == JobState.CANCELLED else status
    write_event(tx, job, f"job.{status}", message if error else f"The job has {word}", data=error)
