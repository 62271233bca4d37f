"""Making a job: from a spec to rows, and to the first runs."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from app.jobs.planning import EXPLICIT, Plan, plan_spec, resolved_method, rows_of_plan
from app.jobs.schemas import CreateJob
from core.advance import advance_job
from core.database import Transaction
from core.errors import ServiceError
from core.events import write_event
from core.ids import new_id
from core.settings import settings
from core.states import FINISHED_JOB
from core.tables import ArtifactReference, Job, JobInput
from mpo.plan import plan_warnings

JOB_ITSELF = ""
"""Stage name of a reference that the whole job holds: to the trained models that it reads."""


LEAF_KINDS = ("model", "dataset")


class TooManyOpenJobs(ServiceError):
    """As many jobs are unfinished as this key may have: wait for one to end, or cancel one."""

    code, status, title = "too_many_open_jobs", 429, "Too many open jobs"
    retryable = True
    retry_after_seconds = 30


def create_job(tx: Transaction, owner: str, spec: CreateJob) -> Job:
    """Insert a job with its stages and start what is ready; raises what refuses it."""
    _leave_room(tx, owner)
    plan = plan_spec(tx, owner, spec)
    job = _job_row(owner, spec, plan)
    tx.session.add(job)
    tx.session.flush()
    tx.session.add_all(rows_of_plan(job.id, plan.stages, plan.keys))
    tx.session.add_all(_inputs(job, plan))
    tx.session.flush()
    _refer_to_models(tx, job, plan)
    write_event(tx, job, "job.created", "The job has been created")
    for stage, warnings in plan_warnings(plan.stages).items():
        for warning in warnings:
            write_event(tx, job, "stage.warning", warning, stage=stage)
    # advance_job reads the job's row anew: what is pending must be in it by then.
    tx.session.flush()
    advance_job(tx, job.id)
    return job


def _leave_room(tx: Transaction, owner: str) -> None:
    is_open = Job.owner == owner, Job.status.not_in(FINISHED_JOB)
    open_jobs = tx.session.scalar(select(func.count()).select_from(Job).where(*is_open)) or 0
    if open_jobs >= settings().max_open_jobs:
        raise TooManyOpenJobs(open_jobs=open_jobs, limit=settings().max_open_jobs)


def _job_row(owner: str, spec: CreateJob, plan: Plan) -> Job:
    first = {kind: next((s.name for s in plan.leaves.keys if s.kind == kind), None) for kind in LEAF_KINDS}
    return Job(
        id=new_id("job"),
        owner=owner,
        name=spec.name,
        method_type=spec.method.type if spec.method else EXPLICIT,
        method=resolved_method(spec, plan.stages),
        spec=spec.model_dump(mode="json"),
        model=spec.model or first["model"],
        dataset_id=spec.dataset or first["dataset"],
        eval_dataset_id=spec.eval_dataset,
        seed=spec.seed,
        priority=spec.priority,
        labels=spec.labels,
        pause_after=spec.pause_after,
        event_counter=0,
    )


def _inputs(job: Job, plan: Plan) -> list[JobInput]:
    trained = {source: artifact.id for source, artifact in plan.leaves.artifacts.items()}
    return [
        JobInput(job_id=job.id, kind=s.kind, name=s.name, artifact_id=trained.get(s))
        for s in plan.leaves.keys
    ]


def _refer_to_models(tx: Transaction, job: Job, plan: Plan) -> None:
    artifacts = {artifact.id for artifact in plan.leaves.artifacts.values()}
    rows = [{"artifact_id": i, "job_id": job.id, "stage_name": JOB_ITSELF} for i in sorted(artifacts)]
    if rows:
        tx.session.execute(upsert(ArtifactReference).values(rows))
