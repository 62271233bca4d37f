"""`advance_job`: the only function that moves a job to its next stages. Idempotent.

Called after create, claim, publish, fail, cancel, pause, resume, and by recovery. Lock order: job, then run,
and of several runs the one with the smaller key first.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from core.database import Transaction
from core.events import write_event
from core.gates import (
    dataset_states,
    failure_of,
    found_weak,
    held_names,
    take_pauses,
    weak_failure,
    weak_reason,
)
from core.ids import new_id
from core.job_changes import ENDED_STAGE, USER, finish_job
from core.job_rows import lock_job, stages_of
from core.known_work import KnownWork
from core.states import FINISHED_JOB, DatasetState, JobState, RunState, StageState
from core.tables import Artifact, Job, Run, StageRow
from core.work_items import NewRun
from core.work_lookup import find_run, hold_artifacts, new_run


def advance_job(tx: Transaction, job_id: str) -> None:
    """Read what the job's runs became, mark what is cached, enqueue what is ready, set the job's status."""
    job = lock_job(tx, job_id)
    if job is None or job.status in FINISHED_JOB:
        return
    stages = stages_of(tx, job)
    for stage in stages:
        _apply_run(tx, job, stage)
    _move(tx, job, stages, dataset_states(tx, job))


def start_job(
    tx: Transaction, job: Job, stages: list[StageRow], datasets: Mapping[str, str], known: KnownWork
) -> None:
    """The first `advance_job`, of a job that this transaction makes. datasets: the state of each.

    known: what there is of the stages' work. Job and stages are rows to be: whoever calls inserts them then,
    and after them the references that are to be recorded.
    """
    _move(tx, job, stages, datasets, known)


def first_runs(
    tx: Transaction, job: Job, stages: list[StageRow], datasets: Mapping[str, str]
) -> list[NewRun]:
    """The runs that `start_job` will queue where there is nothing yet of any stage's work.

    Those of several jobs can so be queued together; `KnownWork.queued` tells `start_job` of them.
    """
    if any(state != DatasetState.READY for state in datasets.values()):
        return []
    ready = _ready_stages(job, stages)
    ids = _new_ids(ready)
    return [new_run(tx, job, stage, stages, ids[stage.name]) for stage in ready]


def _move(
    tx: Transaction,
    job: Job,
    stages: list[StageRow],
    datasets: Mapping[str, str],
    known: KnownWork | None = None,
) -> None:
    ready = all(state == DatasetState.READY for state in datasets.values())
    failure = failure_of(stages, datasets) or weak_failure(job, stages)
    if failure is None and ready:
        _start_ready_stages(tx, job, stages, known)
        # A score may have been cached just now.
        failure = weak_failure(job, stages)
    if failure is not None:
        finish_job(tx, job, stages, JobState.FAILED, error=failure)
    elif ready:
        _set_status(tx, job, stages)


def _apply_run(tx: Transaction, job: Job, stage: StageRow, known: KnownWork | None = None) -> None:
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
    if run.state == RunState.SUCCEEDED:
        artifacts = hold_artifacts(tx, job, stage, known)
        if artifacts:
            _succeed(tx, job, stage, artifacts, known, cached=False)
        else:
            # Deleted between its publication and now: the work is looked for anew.
            stage.status, stage.run_id = StageState.WAITING, None
        return
    stage.status = StageState(run.state)
    if run.state == RunState.RUNNING:
        stage.started_at = run.started_at
        write_event(tx, job, "stage.started", f"{stage.name} has started", stage=stage.name)
    elif run.state == RunState.FAILED:
        stage.error, stage.finished_at = run.error, run.finished_at
        message = (run.error or {}).get("message", "")
        write_event(tx, job, "stage.failed", f"{stage.name} failed: {message}", stage=stage.name)


def _succeed(
    tx: Transaction,
    job: Job,
    stage: StageRow,
    artifacts: Mapping[str, Artifact],
    known: KnownWork | None = None,
    *,
    cached: bool,
) -> None:
    run_id = next(iter(artifacts.values())).run_id
    run = known.runs.get(run_id) if known is not None else None
    run = run or tx.session.get_one(Run, run_id, populate_existing=True)
    stage.status, stage.cached = StageState.SUCCEEDED, cached
    stage.artifacts = {output: artifact.id for output, artifact in artifacts.items()}
    stage.run_id, stage.summary = run.id, run.summary
    stage.started_at = _now() if cached else run.started_at
    stage.finished_at = _now() if cached else run.finished_at
    kind, verb = ("stage.cached", "is cached") if cached else ("stage.succeeded", "has succeeded")
    write_event(tx, job, kind, f"{stage.name} {verb}", stage=stage.name)
    if found_weak(stage) and stage.config.get("on_weak") == "warn":
        write_event(tx, job, "stage.warning", weak_reason(stage), stage=stage.name)


def _start_ready_stages(tx: Transaction, job: Job, stages: list[StageRow], known: KnownWork | None) -> None:
    """Cached stages may make others ready, so this goes round until nothing moves."""
    moved = True
    while moved:
        take_pauses(tx, job, stages)
        if job.pause and job.pause["reason"] == USER:
            return
        ready = _ready_stages(job, stages)
        cached = [stage.name for stage in ready if _take_cached(tx, job, stage, known)]
        moved = bool(cached) or _find_work(tx, job, ready, stages, known)


def _ready_stages(job: Job, stages: list[StageRow]) -> list[StageRow]:
    done = {s.name for s in stages if s.status == StageState.SUCCEEDED} - held_names(job, stages)
    return [s for s in stages if s.status == StageState.WAITING and _needs(s) <= done]


def _needs(stage: StageRow) -> set[str]:
    return {s["name"] for sources in stage.inputs.values() for s in sources if s["kind"] == "stage"}


def _take_cached(tx: Transaction, job: Job, stage: StageRow, known: KnownWork | None) -> bool:
    if known is not None and stage.key in known.untouched:
        return False
    artifacts = hold_artifacts(tx, job, stage, known)
    if artifacts:
        _succeed(tx, job, stage, artifacts, known, cached=True)
    return bool(artifacts)


def _find_work(
    tx: Transaction, job: Job, ready: list[StageRow], stages: list[StageRow], known: KnownWork | None
) -> bool:
    """Give each stage a run to wait for; True where one was published meanwhile, and is cached."""
    new_ids = _new_ids(ready)
    if known is not None:
        new_ids |= {s.name: known.queued[s.key] for s in ready if s.key in known.queued}
    moved = False
    # Two jobs that want the same runs ask for them in the same order: neither waits for the other.
    for stage in sorted(ready, key=lambda stage: stage.key):
        run_id = find_run(tx, job, stage, stages, new_ids[stage.name], known)
        if run_id is None:
            moved = _take_cached(tx, job, stage, known) or moved
        else:
            stage.run_id, stage.status = run_id, StageState.QUEUED
            if run_id != new_ids[stage.name]:
                _apply_run(tx, job, stage, known)
            if known is not None:
                known.keep_run(tx, job, stage, new=run_id == new_ids[stage.name])
    return moved


def _new_ids(ready: list[StageRow]) -> dict[str, str]:
    # The queue's last criterion is the id: equals are worked off in the plan's order.
    return dict(zip([s.name for s in ready], sorted(new_id("run") for _ in ready), strict=True))


def _set_status(tx: Transaction, job: Job, stages: list[StageRow]) -> None:
    if all(stage.status == StageState.SUCCEEDED for stage in stages) and job.pause is None:
        finish_job(tx, job, stages, JobState.SUCCEEDED, error=None)
        return
    begun = any(stage.status in (StageState.RUNNING, StageState.SUCCEEDED) for stage in stages)
    if begun and job.started_at is None:
        job.started_at = _now()
        write_event(tx, job, "job.started", "The job has started")
    job.status = JobState.PAUSED if job.pause else JobState.RUNNING if job.started_at else JobState.QUEUED


def _now() -> datetime:
    return datetime.now(UTC)
