"""Making a job: from a spec to rows, and to the first runs."""

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.jobs.leaves import Leaves, find_leaves
from app.jobs.planning import plan_spec, resolved_method, stage_row
from app.jobs.schemas import CreateJob, DryRunView, PlannedStageView
from core.advance import advance_job
from core.database import Transaction
from core.errors import ServiceError
from core.events import write_event
from core.ids import new_id
from core.settings import settings
from core.states import FINISHED_JOB
from core.tables import Artifact, ArtifactReference, Job
from mpo.plan import PlannedStage, plan_keys

JOB_ITSELF = ""
"""Stage name of a reference that the whole job holds: to the trained model that it starts from."""


class TooManyOpenJobs(ServiceError):
    """As many jobs are unfinished as this key may have: wait for one to end, or cancel one."""

    code, status, title = "too_many_open_jobs", 429, "Too many open jobs"
    retryable = True
    retry_after_seconds = 30


def create_job(tx: Transaction, owner: str, spec: CreateJob) -> Job:
    """Insert a job with its stages and start what is ready; raises what refuses it."""
    _leave_room(tx, owner)
    leaves = find_leaves(tx, owner, spec)
    stages = plan_spec(spec, leaves.base.context_tokens)
    keys = plan_keys(stages, leaves.keys)
    job = _job_row(owner, spec, stages)
    tx.session.add(job)
    tx.session.flush()
    tx.session.add_all(stage_row(job.id, i, stage, keys[stage.name]) for i, stage in enumerate(stages))
    tx.session.flush()
    _refer_to_model(tx, job, leaves)
    write_event(tx, job, "job.created", "The job has been created")
    # advance_job reads the job's row anew: what is pending must be in it by then.
    tx.session.flush()
    advance_job(tx, job.id)
    return job


def plan_job(tx: Transaction, owner: str, spec: CreateJob) -> DryRunView:
    """What `create_job` would do, without doing it; what is cached is a forecast."""
    leaves = find_leaves(tx, owner, spec)
    stages = plan_spec(spec, leaves.base.context_tokens)
    keys = plan_keys(stages, leaves.keys)
    cached = _cached_keys(tx.session, owner, keys)
    views = [
        PlannedStageView(
            name=stage.name,
            kind=stage.kind,
            config=stage.config.model_dump(mode="json"),
            key=keys[stage.name],
            cached=keys[stage.name] in cached,
        )
        for stage in stages
    ]
    given = spec.model_dump(include=set(DryRunView.model_fields) - {"method", "stages"})
    return DryRunView(**given, method=resolved_method(spec, stages), stages=views)


def _leave_room(tx: Transaction, owner: str) -> None:
    is_open = Job.owner == owner, Job.status.not_in(FINISHED_JOB)
    open_jobs = tx.session.scalar(select(func.count()).select_from(Job).where(*is_open)) or 0
    if open_jobs >= settings().max_open_jobs:
        raise TooManyOpenJobs(open_jobs=open_jobs, limit=settings().max_open_jobs)


def _job_row(owner: str, spec: CreateJob, stages: list[PlannedStage]) -> Job:
    return Job(
        id=new_id("job"),
        owner=owner,
        name=spec.name,
        method_type=spec.method.type,
        method=resolved_method(spec, stages),
        spec=spec.model_dump(mode="json"),
        model=spec.model,
        dataset_id=spec.dataset,
        eval_dataset_id=spec.eval_dataset,
        seed=spec.seed,
        priority=spec.priority,
        labels=spec.labels,
        pause_after=spec.pause_after,
        event_counter=0,
    )


def _refer_to_model(tx: Transaction, job: Job, leaves: Leaves) -> None:
    if leaves.artifact is not None:
        row = {"artifact_id": leaves.artifact.id, "job_id": job.id, "stage_name": JOB_ITSELF}
        tx.session.execute(upsert(ArtifactReference).values(row))


def _cached_keys(session: Session, owner: str, keys: Mapping[str, str]) -> set[str]:
    statement = select(Artifact.key).where(
        Artifact.owner == owner, Artifact.key.in_(keys.values()), Artifact.deleted_at.is_(None)
    )
    return set(session.scalars(statement))
