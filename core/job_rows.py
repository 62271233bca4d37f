"""A job's rows as whoever moves the job reads them: locked, and as they stand."""

from sqlalchemy import ColumnElement, select

from core.database import Transaction
from core.states import FINISHED_JOB
from core.tables import Job, JobInput, Run, StageRow


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
