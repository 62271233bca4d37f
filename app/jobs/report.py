"""The report of a job that has succeeded, made of what its stages left."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.changes import NotFinished
from app.jobs.service import find_job
from core.states import JobState
from core.tables import Dataset, StageRow
from mpo.job_spec import JobSpec
from mpo.report import build_report


class Report(BaseModel):
    """What `report.json` of `python -m mpo run` holds."""

    model_config = ConfigDict(extra="allow")

    object: str
    name: str
    spec: dict[str, Any]


def read_report(session: Session, owner: str, job_id: str) -> Report:
    """The report; raises NotFinished where the job has not succeeded."""
    job = find_job(session, owner, job_id)
    if job.status != JobState.SUCCEEDED:
        raise NotFinished(f"The job is {job.status}: a report is made of all that its stages leave")
    stages = session.scalars(select(StageRow).where(StageRow.job_id == job.id).order_by(StageRow.position))
    summaries = {stage.name: stage.summary for stage in stages if stage.summary is not None}
    found = [_validated(session, id_) for id_ in (job.dataset_id, job.eval_dataset_id)]
    return Report.model_validate(build_report(summaries, JobSpec.model_validate(job.spec), *found))


def _validated(session: Session, dataset_id: str | None) -> dict[str, Any] | None:
    """What validation found in a dataset; None where there is none."""
    dataset = session.get(Dataset, dataset_id) if dataset_id is not None else None
    return dataset.report if dataset is not None else None
