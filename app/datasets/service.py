"""Use cases of datasets."""

from sqlalchemy import select, update
from sqlalchemy.sql.functions import func

from app.datasets.schemas import DatasetCreate
from app.ownership import find_owned
from core import queue
from core.database import Transaction
from core.errors import Conflict
from core.ids import new_id
from core.states import FINISHED_JOB, DatasetState
from core.stored_files import StoredFile
from core.tables import Artifact, Dataset, Job, JobInput
from core.work_items import NewRun


class HasOtherContent(Conflict):
    """The dataset has content already, and it is another one: make a new dataset."""

    code = "dataset_has_other_content"


class DatasetInUse(Conflict):
    """A job that has not finished uses this dataset."""

    code = "dataset_in_use"


class NotValidated(Conflict):
    """The dataset has not been validated yet."""

    code, retryable = "dataset_not_validated", True


class DatasetNotReady(Conflict):
    """The dataset's rows are not there yet."""

    code, retryable = "dataset_not_ready", True


class NeverValidated(NotValidated):
    """The dataset awaits its content, or was refused: no wait alone brings its rows."""

    retryable = False


def create_dataset(tx: Transaction, owner: str, body: DatasetCreate) -> Dataset:
    """A dataset that awaits its content."""
    dataset = Dataset(id=new_id("dataset"), owner=owner, **body.model_dump())
    tx.session.add(dataset)
    tx.session.flush()
    tx.session.refresh(dataset)
    return dataset


def not_validated(dataset: Dataset) -> NotValidated:
    """The error of a dataset that has not the rows or the report which are asked for."""
    waits = dataset.status == DatasetState.VALIDATING
    lacks = "report" if dataset.report is None else "rows"
    return (NotValidated if waits else NeverValidated)(f"The dataset is {dataset.status}: it has no {lacks}")


def accept_content(
    tx: Transaction, owner: str, dataset_id: str, stored: StoredFile, media_type: str | None
) -> tuple[Dataset, bool]:
    """Make uploaded bytes the dataset's content and queue their validation.

    Returns the dataset and whether it is new to it; raises HasOtherContent, NotFound.
    """
    dataset = find_owned(tx.session, Dataset, owner, dataset_id, for_update=True)
    if dataset.sha256 is not None:
        if dataset.sha256 != stored.sha256:
            raise HasOtherContent(dataset=dataset.id)
        return dataset, False
    dataset.status, dataset.location = DatasetState.VALIDATING, stored.name
    dataset.bytes, dataset.sha256, dataset.media_type = stored.bytes, stored.sha256, media_type
    dataset.run_id = queue.enqueue(tx, _validation(dataset, stored))
    tx.session.flush()
    return dataset, True


def _validation(dataset: Dataset, stored: StoredFile) -> NewRun:
    content = {
        "kind": "dataset",
        "id": dataset.id,
        "name": dataset.id,
        "location": stored.name,
        "sha256": stored.sha256,
    }
    return NewRun(
        kind="validate_dataset",
        slot="cpu",
        owner=dataset.owner,
        subject_id=dataset.id,
        config={
            "kind": dataset.kind,
            "max_bad_rows": dataset.max_bad_rows,
            "media_type": dataset.media_type,
        },
        inputs={"content": [content]},
    )


def delete_dataset(tx: Transaction, owner: str, dataset_id: str) -> str | None:
    """Delete a dataset that no live job uses; returns where its bytes lie, to be removed after the commit.

    The row is locked in one statement and jobs are looked for in the next, which sees every job that had it
    locked before.
    """
    dataset = find_owned(tx.session, Dataset, owner, dataset_id, for_update=True)
    reads_it = JobInput.kind == "dataset", JobInput.name == dataset_id
    job_id = tx.session.scalar(
        select(Job.id).join(JobInput).where(*reads_it, Job.status.not_in(FINISHED_JOB)).limit(1)
    )
    if job_id is not None:
        raise DatasetInUse(f"Job {job_id} uses this dataset and has not finished", job=job_id)
    if dataset.run_id is not None:
        queue.cancel(tx, dataset.run_id)
        # The sweeper removes the rows' file once no artifact names it.
        gone = update(Artifact).where(Artifact.run_id == dataset.run_id)
        tx.session.execute(gone.values(deleted_at=func.clock_timestamp()))
    dataset.deleted_at = tx.session.scalar(select(func.clock_timestamp()))
    return dataset.location
