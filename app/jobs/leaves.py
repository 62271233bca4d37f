"""What a spec names: datasets and a model, looked up and held until the job refers to them."""

from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.schemas import CreateJob
from core.database import Transaction
from core.errors import Conflict, Unprocessable
from core.states import DatasetState
from core.storage import storage
from core.tables import Artifact, BaseModelRow, Dataset, Job, StageRow
from mpo.keys import InputKey, dataset_key
from mpo.plan import Source

POLICY_KINDS = frozenset({"sft", "dpo", "ppo"})
PREFERENCE = "preference"


class NoContent(Conflict):
    """The dataset awaits its content: PUT it first."""

    code, title = "dataset_has_no_content", "The dataset has no content"


class NoChatTemplateHere(Unprocessable):
    """The dataset holds messages, and the model has no chat template to render them."""

    code, title = "no_chat_template", "The model has no chat template"


@dataclass(frozen=True)
class Leaves:
    """The inputs of a plan that no stage makes. artifact: the trained model's, to be referred to."""

    keys: dict[Source, InputKey]
    base: BaseModelRow
    artifact: Artifact | None


def find_leaves(tx: Transaction, owner: str, spec: CreateJob) -> Leaves:
    """Look up all that a spec names; raises Unprocessable naming the field, or NoContent."""
    keys: dict[Source, InputKey] = {}
    datasets = [_dataset(tx, owner, spec.dataset, "dataset")]
    if spec.eval_dataset is not None:
        datasets.append(_dataset(tx, owner, spec.eval_dataset, "eval_dataset"))
    for dataset in datasets:
        keys[Source.dataset(dataset.id)] = dataset_leaf(dataset)
    if ":" in spec.model:
        stage, artifact = _trained_policy(tx, owner, spec.model)
        keys[Source.model(spec.model)] = (stage.key, "model")
        base = _base_of(tx, owner, spec.model)
    else:
        artifact, base = None, _base_policy(tx, spec.model)
        keys[Source.model(spec.model)] = (base.sha256, "model")
    for dataset in datasets:
        if holds_messages(dataset) and not base.has_chat_template:
            raise NoChatTemplateHere(loc=("body", "model"))
    return Leaves(keys, base, artifact)


def leaf_keys(session: Session, job: Job) -> dict[Source, InputKey]:
    """The leaves of a job that exists: its datasets and its model cannot have gone meanwhile."""
    ids = [i for i in (job.dataset_id, job.eval_dataset_id) if i is not None]
    datasets = session.scalars(select(Dataset).where(Dataset.id.in_(ids)))
    keys = {Source.dataset(dataset.id): dataset_leaf(dataset) for dataset in datasets}
    if ":" in job.model:
        job_id, _, stage_name = job.model.partition(":")
        digest = session.get_one(StageRow, (job_id, stage_name)).key
    else:
        digest = session.get_one(BaseModelRow, job.model).sha256
    return keys | {Source.model(job.model): (digest, "model")}


def dataset_leaf(dataset: Dataset) -> InputKey:
    """Known while the rows are still being validated."""
    return dataset_key(dataset.sha256 or "", dataset.kind, dataset.max_bad_rows), "pairs"


def holds_messages(dataset: Dataset) -> bool:
    """Whether a row of the dataset holds message lists; False while its rows are not there."""
    if dataset.status != DatasetState.READY or dataset.rows_location is None:
        return False
    return _has_messages(dataset.rows_location)


@lru_cache(maxsize=1024)
def _has_messages(location: str) -> bool:
    # The footer's bounds of the column tell it, whatever the file's size; a location's content never changes.
    # Imported late: the server starts without pyarrow.
    from pyarrow import parquet

    with storage().open_read(location) as file:
        metadata = parquet.ParquetFile(file).metadata
        column = metadata.schema.to_arrow_schema().names.index("form")
        groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    return any(bounds is not None and bounds.min == "messages" for bounds in groups)


def _dataset(tx: Transaction, owner: str, dataset_id: str, field: str) -> Dataset:
    # Held until the job's row refers to it, so that it is not deleted in between.
    dataset = tx.session.scalar(
        select(Dataset)
        .where(Dataset.id == dataset_id, Dataset.owner == owner, Dataset.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    if dataset is None:
        raise Unprocessable(f"{field} names no dataset of yours: give the id of one", loc=("body", field))
    if dataset.kind != PREFERENCE:
        raise Unprocessable(
            f"{field} is a dataset of {dataset.kind}: this method takes one of kind {PREFERENCE}",
            loc=("body", field),
        )
    if dataset.status == DatasetState.AWAITING_CONTENT:
        raise NoContent(f"{dataset.id} awaits its content: PUT /v1/datasets/{dataset.id}/content first")
    return dataset


def _base_policy(tx: Transaction, name: str) -> BaseModelRow:
    base = tx.session.scalar(
        select(BaseModelRow)
        .where(BaseModelRow.name == name, BaseModelRow.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    if base is None:
        raise _no_model("There is no such base model")
    if base.kind != "policy":
        raise _no_model("That is a reward model")
    return base


def _trained_policy(tx: Transaction, owner: str, name: str) -> tuple[StageRow, Artifact]:
    job_id, _, stage_name = name.partition(":")
    job = tx.session.scalar(
        select(Job)
        .where(Job.id == job_id, Job.owner == owner, Job.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    stage = tx.session.get(StageRow, (job_id, stage_name)) if job else None
    if stage is None:
        raise _no_model("There is no such trained model")
    if stage.kind not in POLICY_KINDS:
        raise _no_model(f"{stage.kind} makes no policy")
    artifact = tx.session.scalar(
        select(Artifact)
        .where(Artifact.id == stage.artifacts.get("model"), Artifact.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    if artifact is None:
        raise _no_model("That model is not trained yet")
    return stage, artifact


def _base_of(tx: Transaction, owner: str, name: str) -> BaseModelRow:
    """The base model that a trained one descends from: its context and chat template are inherited."""
    while ":" in name:
        job = tx.session.get_one(Job, name.partition(":")[0])
        name = job.model
    return tx.session.get_one(BaseModelRow, name)


def _no_model(why: str) -> Unprocessable:
    accepted = "give the name of a base policy or job_…:stage of a trained one, as /v1/models lists them"
    return Unprocessable(f"{why}: {accepted}", loc=("body", "model"))
