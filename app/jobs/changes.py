"""What a person may do to a job that exists: cancel, pause, resume with another split, delete.

Each returns the ids of the runs that were live before. Other jobs may wait on those: they are advanced after
the commit, each in a transaction of its own, as two jobs are never locked together.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import delete, select

from app.jobs.leaves import leaf_keys
from app.jobs.planning import EXPLICIT, planned_stages
from app.jobs.schemas import ResumeJob
from app.models.live_users import live_user_of
from core.advance import advance_job
from core.database import Transaction
from core.errors import Conflict, NotFound, Unprocessable
from core.ids import is_id
from core.job_changes import USER, cancel_job, pause_job, reset_stage, resume_job
from core.job_rows import lock_job, stages_of
from core.retention import delete_unneeded
from core.states import FINISHED_JOB, LIVE, JobState
from core.tables import ArtifactReference, Job, JobInput, Run, StageRow
from mpo.config import SplitStage
from mpo.plan import dependents, plan_keys

SPLIT = "split"


class JobFinished(Conflict):
    """The job has ended."""

    code, title = "job_finished", "The job has ended"


class NotFinished(Conflict):
    """The job has not ended."""

    code, title = "not_finished", "The job has not ended"


class NotPaused(Conflict):
    """Only a paused job can be resumed."""

    code, title = "not_paused", "The job is not paused"


class InUse(Conflict):
    """An unfinished job, comparison or evaluation uses what this one made."""

    code, title = "in_use", "What this job made is in use"


def cancel(tx: Transaction, owner: str, job_id: str) -> tuple[Job, list[str]]:
    """End the job now; again on a cancelled one changes nothing. Raises JobFinished, NotFound."""
    job = hold_job(tx, owner, job_id)
    if job.status == JobState.CANCELLED:
        return job, []
    _refuse_finished(job)
    runs = _live_runs(tx, job)
    cancel_job(tx, job, stages_of(tx, job))
    tx.session.flush()
    return job, runs


def pause(tx: Transaction, owner: str, job_id: str) -> tuple[Job, list[str]]:
    """Hold the whole job; one that a person has paused stays as it is. Raises JobFinished, NotFound.

    A job that waits at one of its stages still works at others: they are held too, and resuming lifts this
    pause alone, so that the job goes on as it was, waiting at that stage.
    """
    job = hold_job(tx, owner, job_id)
    if job.pause is not None and job.pause["reason"] == USER:
        return job, []
    _refuse_finished(job)
    runs = _live_runs(tx, job)
    pause_job(tx, job, stages_of(tx, job))
    tx.session.flush()
    advance_job(tx, job.id)
    return job, runs


def resume(tx: Transaction, owner: str, job_id: str, body: ResumeJob) -> tuple[Job, list[str]]:
    """Go on, perhaps with other splits. Raises NotPaused, NotFound, Unprocessable for what is no split."""
    job = hold_job(tx, owner, job_id)
    if job.status != JobState.PAUSED:
        raise NotPaused(f"The job is {job.status}; only a paused one can be resumed")
    runs = _live_runs(tx, job)
    stages = stages_of(tx, job)
    splits = body.splits()
    _check_names(stages, body.names())
    if splits:
        _replace_splits(tx, job, stages, splits)
    resume_job(tx, job, stages)
    tx.session.flush()
    advance_job(tx, job.id)
    return job, runs


def delete_job(tx: Transaction, owner: str, job_id: str) -> None:
    """Forget a finished job, with results that no other job needs. Raises NotFinished, InUse, NotFound."""
    job = hold_job(tx, owner, job_id)
    if job.status not in FINISHED_JOB:
        raise NotFinished(f"The job is {job.status}: cancel it, or wait until it has ended")
    uses_it = JobInput.name.startswith(f"{job_id}:", autoescape=True), Job.status.not_in(FINISHED_JOB)
    user = tx.session.scalar(select(Job.id).join(JobInput).where(Job.owner == owner, *uses_it).limit(1))
    if user is not None:
        raise InUse(f"{user} uses a model of this job: cancel it, or wait until it has ended", job=user)
    models = [f"{job_id}:{stage.name}" for stage in stages_of(tx, job)]
    if (user := live_user_of(tx.session, models)) is not None:
        detail = f"{user} uses a model of this job: cancel it, or wait until it has ended"
        raise InUse(detail, **{"comparison" if is_id("comparison", user) else "evaluation": user})
    job.deleted_at = datetime.now(UTC)
    of_job = ArtifactReference.job_id == job.id
    referred = list(tx.session.scalars(select(ArtifactReference.artifact_id).where(of_job)))
    tx.session.execute(delete(ArtifactReference).where(of_job))
    tx.session.flush()
    delete_unneeded(tx, referred)


def hold_job(tx: Transaction, owner: str, job_id: str) -> Job:
    """The caller's job, its row locked until the transaction ends; raises NotFound."""
    job = lock_job(tx, job_id)
    if job is None or job.owner != owner or job.deleted_at is not None:
        raise NotFound(f"There is no job {job_id}")
    return job


def _check_names(stages: Sequence[StageRow], names: Sequence[str]) -> None:
    known = [stage.name for stage in stages if stage.kind == SPLIT]
    accepted = f"accepted are {', '.join(known)}" if known else "this job has no split"
    for name in names:
        if name not in known:
            raise Unprocessable(f"Should be the name of a split; {accepted}", loc=("body", name))


def _replace_splits(
    tx: Transaction, job: Job, stages: Sequence[StageRow], splits: Mapping[str, SplitStage]
) -> None:
    """Give splits another configuration, and them and all that depends on them new keys and a new start."""
    for stage in stages:
        if stage.name in splits:
            stage.config = splits[stage.name].model_dump(mode="json")
            _write_into_spec(job, stage)
    plan = planned_stages(stages)
    changed = set(splits).union(*(dependents(plan, name) for name in splits))
    standing = {stage.name: stage.key for stage in stages if stage.name not in changed}
    keys = plan_keys(plan, leaf_keys(tx.session, job), standing)
    for stage in stages:
        if stage.name in changed:
            reset_stage(tx, job, stage)
            stage.key = keys[stage.name]


def _write_into_spec(job: Job, stage: StageRow) -> None:
    # Lists and objects in JSON columns are replaced, not changed in place: only that is noticed.
    if job.method_type == EXPLICIT:
        nodes = [n | stage.config if n["name"] == stage.name else n for n in job.spec["stages"]]
        job.spec = {**job.spec, "stages": nodes}
    else:
        job.method = {**job.method, stage.name: stage.config}
        job.spec = {**job.spec, "method": {**job.spec["method"], stage.name: stage.config}}


def _live_runs(tx: Transaction, job: Job) -> list[str]:
    return list(tx.session.scalars(select(Run.id).where(Run.job_id == job.id, Run.state.in_(LIVE))))


def _refuse_finished(job: Job) -> None:
    if job.status in FINISHED_JOB:
        raise JobFinished(f"The job has {job.status} already")
