"""Making a job: from a spec to rows, and to the first runs."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm.instrumentation import ClassManager, manager_of_class

from app.jobs.fitting import refuse_what_does_not_fit
from app.jobs.insertion import FRESH_JOB, FRESH_STAGE, NewJob, have_at_hand, insert_jobs
from app.jobs.planning import EXPLICIT, Plan, plan_spec
from app.jobs.room import rooms
from app.jobs.schemas import CreateJob, JobView
from app.jobs.views import new_job_views
from core.advance import start_job
from core.database import Transaction
from core.events import write_event
from core.ids import new_id
from core.known_work import look_at_all, look_for
from core.logs import bound_request
from core.tables import ArtifactReference, Job, JobInput, StageRow

JOB_ITSELF = ""
"""Stage name of a reference that the whole job holds: to the trained models that it reads."""


LEAF_KINDS = ("model", "dataset")
_STAGE_ROWS: ClassManager[StageRow] = manager_of_class(StageRow)


def create_job(tx: Transaction, owner: str, spec: CreateJob) -> JobView:
    """Insert a job with its stages and start what is ready; raises what refuses it."""
    rooms().enter(tx, owner)
    plan = plan_spec(tx, owner, spec)
    refuse_what_does_not_fit(tx, owner, spec, plan)
    keys = plan.keys.values()
    look = look_for(tx, owner, keys)
    known = look_at_all(tx, owner, keys, look.touched)
    new = new_job(tx, owner, spec, plan, look.moment)
    start_job(tx, new.job, new.stages, dataset_states(plan), known)
    insert_jobs(tx, [new])
    known.record_references(tx)
    _refer_to_models(tx, new.job, plan)
    return new_job_views(tx.session, [(new.job, new.stages)], known.runs)[0]


def new_job(tx: Transaction, owner: str, spec: CreateJob, plan: Plan, moment: datetime) -> NewJob:
    """The rows that a plan comes to. moment: of the job's making, by the database's clock."""
    job = _job_row(owner, spec, plan, moment)
    write_event(tx, job, "job.created", "The job has been created")
    for stage, warnings in plan.blueprint.warnings.items():
        for warning in warnings:
            write_event(tx, job, "stage.warning", warning, stage=stage)
    new = NewJob(job, _stage_rows(plan), _inputs(job, plan), plan.blueprint.written)
    have_at_hand(tx, new.inputs)
    return new


def dataset_states(plan: Plan) -> Mapping[str, str]:
    """The state of each dataset that a plan reads."""
    return {dataset.id: dataset.status for dataset in plan.leaves.datasets.values()}


def _job_row(owner: str, spec: CreateJob, plan: Plan, moment: datetime) -> Job:
    first = {kind: next((s.name for s in plan.leaves.keys if s.kind == kind), None) for kind in LEAF_KINDS}
    return Job(
        id=new_id("job"),
        owner=owner,
        name=spec.name,
        method_type=spec.method.type if spec.method else EXPLICIT,
        method=plan.blueprint.method,
        spec=spec.model_dump(mode="json"),
        model=spec.model or first["model"],
        dataset_id=spec.dataset or first["dataset"],
        eval_dataset_id=spec.eval_dataset,
        seed=spec.seed,
        priority=spec.priority,
        labels=spec.labels,
        pause_after=spec.pause_after,
        request_id=bound_request(),
        created_at=moment,
        **FRESH_JOB,
    )


def _stage_rows(plan: Plan) -> list[StageRow]:
    columns = plan.blueprint.columns
    stages = []
    for stage in plan.stages:
        # As the session makes what it loads: the constructor would tell of each column that it has changed,
        # which took a sixth of a submission.
        row = _STAGE_ROWS.new_instance()
        vars(row).update(columns[stage.name], seed=stage.seed, key=plan.keys[stage.name], **FRESH_STAGE)
        stages.append(row)
    return stages


def _inputs(job: Job, plan: Plan) -> list[JobInput]:
    trained = {source: artifact.id for source, artifact in plan.leaves.artifacts.items()}
    return [
        JobInput(job_id=job.id, kind=source.kind, name=source.name, artifact_id=trained.get(source))
        for source in plan.leaves.keys
    ]


def _refer_to_models(tx: Transaction, job: Job, plan: Plan) -> None:
    artifacts = {artifact.id for artifact in plan.leaves.artifacts.values()}
    rows = [{"artifact_id": i, "job_id": job.id, "stage_name": JOB_ITSELF} for i in sorted(artifacts)]
    if rows:
        tx.session.execute(upsert(ArtifactReference).values(rows))
