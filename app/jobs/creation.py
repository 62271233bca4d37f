"""Making a job: from a spec to rows, and to the first runs."""

from sqlalchemy.dialects.postgresql import insert as upsert

from app.jobs.insertion import FRESH_JOB, FRESH_STAGE, insert_job, insert_stages
from app.jobs.planning import EXPLICIT, Plan, plan_spec
from app.jobs.room import rooms
from app.jobs.schemas import CreateJob, JobView
from app.jobs.views import job_view
from core.advance import start_job
from core.database import Transaction
from core.events import write_event
from core.ids import new_id
from core.logs import bound_request
from core.tables import ArtifactReference, Job, StageRow

JOB_ITSELF = ""
"""Stage name of a reference that the whole job holds: to the trained models that it reads."""


LEAF_KINDS = ("model", "dataset")


def create_job(tx: Transaction, owner: str, spec: CreateJob) -> JobView:
    """Insert a job with its stages and start what is ready; raises what refuses it."""
    rooms().enter(tx, owner)
    plan = plan_spec(tx, owner, spec)
    job, stages = _job_row(owner, spec, plan), _stage_rows(plan)
    write_event(tx, job, "job.created", "The job has been created")
    for stage, warnings in plan.blueprint.warnings.items():
        for warning in warnings:
            write_event(tx, job, "stage.warning", warning, stage=stage)
    touched = insert_job(tx, job, _inputs(plan), [stage.key for stage in stages])
    _refer_to_models(tx, job, plan)
    datasets = {dataset.id: dataset.status for dataset in plan.leaves.datasets.values()}
    runs = start_job(tx, job, stages, datasets, touched)
    insert_stages(tx, job, stages, plan.blueprint.written)
    return job_view(tx.session, job, stages, runs)


def _job_row(owner: str, spec: CreateJob, plan: Plan) -> Job:
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
        **FRESH_JOB,
    )


def _stage_rows(plan: Plan) -> list[StageRow]:
    columns = plan.blueprint.columns
    return [
        StageRow(seed=stage.seed, key=plan.keys[stage.name], **columns[stage.name], **FRESH_STAGE)
        for stage in plan.stages
    ]


def _inputs(plan: Plan) -> list[tuple[str, str, str | None]]:
    trained = {source: artifact.id for source, artifact in plan.leaves.artifacts.items()}
    return [(source.kind, source.name, trained.get(source)) for source in plan.leaves.keys]


def _refer_to_models(tx: Transaction, job: Job, plan: Plan) -> None:
    artifacts = {artifact.id for artifact in plan.leaves.artifacts.values()}
    rows = [{"artifact_id": i, "job_id": job.id, "stage_name": JOB_ITSELF} for i in sorted(artifacts)]
    if rows:
        tx.session.execute(upsert(ArtifactReference).values(rows))
