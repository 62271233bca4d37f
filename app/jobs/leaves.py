"""What a spec names: datasets and models, looked up and held until the job refers to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.orm import Session, make_transient_to_detached

from core.database import Transaction
from core.errors import Conflict, Unprocessable
from core.states import DatasetState
from core.storage import storage
from core.tables import Artifact, BaseModelRow, Dataset, Job, JobInput, StageRow
from mpo.errors import UnusableModel
from mpo.headless_architectures import refuse_headless
from mpo.keys import InputKey, dataset_key
from mpo.plan import PlannedStage, Source
from mpo.roles import MADE, Thing
from mpo.stage_graph import lineages

Loc = tuple[str | int, ...]

ROWS: Mapping[str, Thing] = {"preference": "pairs", "prompts": "prompts", "text": "texts"}
"""What a dataset's rows are, by its kind."""

ACCEPTED = "give the name of a base model or job_…:stage of a trained one, as /v1/models lists them"


# Plain columns of both tables in one statement: two statements of mapped rows took a twelfth of a submission.
_PLAIN_LEAVES = text("""
SELECT * FROM (
    SELECT id, kind, sha256, status, rows, rows_location, rows_sha256, max_bad_rows,
        CAST(NULL AS text) AS path, CAST(NULL AS int) AS context_tokens,
        CAST(NULL AS boolean) AS has_chat_template
    FROM datasets WHERE id = ANY(:datasets) AND owner = :of_owner AND deleted_at IS NULL
    FOR KEY SHARE
) AS dataset
UNION ALL SELECT * FROM (
    SELECT name, kind, sha256, NULL, CAST(NULL AS int), NULL, NULL, CAST(NULL AS int), path, context_tokens,
        has_chat_template
    FROM models WHERE name = ANY(:models) AND deleted_at IS NULL
    FOR KEY SHARE
) AS model
""")
_DATASET = ("id", "kind", "sha256", "status", "rows", "rows_location", "rows_sha256", "max_bad_rows")
_BASE_MODEL = ("kind", "sha256", "path", "context_tokens", "has_chat_template")


class NoContent(Conflict):
    """The dataset awaits its content: PUT it first."""

    code, title = "dataset_has_no_content", "The dataset has no content"


class NoChatTemplateHere(Unprocessable):
    """The dataset holds messages, and the model has no chat template to render them."""

    code, title = "no_chat_template", "The model has no chat template"


class UnusableModelHere(Unprocessable):
    """A stage cannot use the model."""

    code, title = "unusable_model", "The model cannot be used"


@dataclass
class Leaves:
    """The inputs of a plan that no stage makes: their keys, and what they are.

    models: the base model that each descends from, whose context and chat template it has. artifacts: the
    trained ones', to be referred to.
    """

    keys: dict[Source, InputKey] = field(default_factory=dict)
    things: dict[Source, Thing] = field(default_factory=dict)
    datasets: dict[Source, Dataset] = field(default_factory=dict)
    models: dict[Source, BaseModelRow] = field(default_factory=dict)
    artifacts: dict[Source, Artifact] = field(default_factory=dict)

    def contexts(self) -> dict[Source, int]:
        """Context of each model, in tokens."""
        return {source: base.context_tokens for source, base in self.models.items()}


def find_leaves(tx: Transaction, owner: str, named: Mapping[Source, Loc]) -> Leaves:
    """Look up all that a spec names; raises Unprocessable naming the field. named: where each is named."""
    leaves, plain = Leaves(), _plain_leaves(tx, owner, named)
    for source, loc in named.items():
        if source.kind == "dataset":
            dataset = plain.datasets.get(source)
            if dataset is None:
                raise Unprocessable(f"{_field(loc)} names no dataset of yours: give the id of one", loc=loc)
            leaves.keys[source] = dataset_leaf(dataset)
            leaves.things[source], leaves.datasets[source] = ROWS[dataset.kind], dataset
        elif ":" in source.name:
            stage, artifact = _trained_model(tx, owner, source.name, loc)
            leaves.keys[source] = (artifact.key, "model")
            leaves.things[source] = MADE[stage.kind]["model"]
            leaves.models[source] = _base_of(tx.session, stage)
            leaves.artifacts[source] = artifact
        else:
            base = plain.models.get(source)
            if base is None:
                raise Unprocessable(f"{_field(loc)} names no base model: {ACCEPTED}", loc=loc)
            leaves.keys[source] = (base.sha256, "model")
            leaves.things[source] = "reward_model" if base.kind == "reward_model" else "policy"
            leaves.models[source] = base
    return leaves


def refuse_unusable(leaves: Leaves, stages: Sequence[PlannedStage], locs: Mapping[str, Loc]) -> None:
    """Raises NoContent; NoChatTemplateHere where a stage would render messages by a model that has none;
    UnusableModelHere where one would make a reward model of an architecture that has no class for it.

    locs: by stage, the field that names its model.
    """
    for dataset in leaves.datasets.values():
        if dataset.status == DatasetState.AWAITING_CONTENT:
            raise NoContent(f"{dataset.id} awaits its content: PUT /v1/datasets/{dataset.id}/content first")
    with_messages = {source for source, dataset in leaves.datasets.items() if holds_messages(dataset)}
    without_template = {source for source, base in leaves.models.items() if not base.has_chat_template}
    for name, lineage in lineages(stages).items():
        if lineage.datasets & with_messages and lineage.models & without_template:
            raise NoChatTemplateHere(loc=locs[name])
    try:
        refuse_headless(stages, {source: Path(base.path) for source, base in leaves.models.items()})
    except UnusableModel as error:
        raise UnusableModelHere(error.detail, loc=locs[str(error.facts["stage"])]) from error


def leaf_keys(session: Session, job: Job) -> dict[Source, InputKey]:
    """The leaves of a job that exists: its datasets and models cannot have gone meanwhile."""
    keys: dict[Source, InputKey] = {}
    for leaf in session.scalars(select(JobInput).where(JobInput.job_id == job.id)):
        if leaf.kind == "dataset":
            keys[Source.dataset(leaf.name)] = dataset_leaf(session.get_one(Dataset, leaf.name))
        elif ":" in leaf.name:
            # Not the key of the stage of this name: that stage may have begun anew, and be another's since.
            keys[Source.model(leaf.name)] = (session.get_one(Artifact, leaf.artifact_id).key, "model")
        else:
            base = session.get_one(BaseModelRow, leaf.name)
            keys[Source.model(leaf.name)] = (base.sha256, "model")
    return keys


def dataset_leaf(dataset: Dataset) -> InputKey:
    """Known while the rows are still being validated."""
    return dataset_key(dataset.sha256 or "", dataset.kind, dataset.max_bad_rows), "pairs"


def holds_messages(dataset: Dataset) -> bool:
    """Whether a row of the dataset holds message lists; False while its rows are not there."""
    if dataset.kind == "text" or dataset.status != DatasetState.READY or dataset.rows_location is None:
        return False
    return _has_messages(dataset.rows_location)


@lru_cache(maxsize=1024)
def _has_messages(location: str) -> bool:
    # The footer's bounds of the column tell it, whatever the file's size; a file without them is read. A
    # location's content never changes. Imported late: the server starts without pyarrow.
    from pyarrow import parquet

    with storage().open_read(location) as file:
        opened = parquet.ParquetFile(file)
        metadata = opened.metadata
        column = metadata.schema.to_arrow_schema().names.index("form")
        groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
        if any(bounds is None for bounds in groups):
            return "messages" in opened.read(columns=["form"]).column(0).unique().to_pylist()
    return any(bounds.min == "messages" for bounds in groups)


def _plain_leaves(tx: Transaction, owner: str, named: Iterable[Source]) -> Leaves:
    """The datasets and base models, held until the job refers to them, so that none is deleted in between.

    What else a row holds, its dataset's long report for one, is read when it is asked for.
    """
    plain = [source for source in named if ":" not in source.name]
    names = {kind: [source.name for source in plain if source.kind == kind] for kind in ("dataset", "model")}
    asked = {"datasets": names["dataset"], "models": names["model"], "of_owner": owner}
    found = Leaves()
    for row in tx.session.connection().execute(_PLAIN_LEAVES, asked):
        values = row._mapping
        thing: Dataset | BaseModelRow
        if values["status"] is not None:
            thing = Dataset(**{name: values[name] for name in _DATASET})
            found.datasets[Source.dataset(thing.id)] = thing
        else:
            thing = BaseModelRow(name=values["id"], **{name: values[name] for name in _BASE_MODEL})
            found.models[Source.model(thing.name)] = thing
        # From now on the session gives it to whoever asks for the row.
        make_transient_to_detached(thing)
        tx.session.add(thing)
    return found


def _trained_model(tx: Transaction, owner: str, name: str, loc: Loc) -> tuple[StageRow, Artifact]:
    job_id, _, stage_name = name.partition(":")
    job = tx.session.scalar(
        select(Job)
        .where(Job.id == job_id, Job.owner == owner, Job.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    stage = tx.session.get(StageRow, (job_id, stage_name)) if job else None
    if stage is None:
        raise Unprocessable(f"{_field(loc)} names no trained model: {ACCEPTED}", loc=loc)
    if "model" not in MADE.get(stage.kind, {}):
        raise Unprocessable(f"A stage of kind {stage.kind} makes no model: {ACCEPTED}", loc=loc)
    artifact = tx.session.scalar(
        select(Artifact)
        .where(Artifact.id == stage.artifacts.get("model"), Artifact.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    if artifact is None:
        raise Unprocessable(f"That model is not trained yet: {ACCEPTED}", loc=loc)
    return stage, artifact


def _base_of(session: Session, stage: StageRow) -> BaseModelRow:
    """The base model that a trained one descends from: its context and chat template are inherited."""
    name = stage.base or ""
    while ":" in name:
        job_id, _, stage_name = name.partition(":")
        name = session.get_one(StageRow, (job_id, stage_name)).base or ""
    return session.get_one(BaseModelRow, name)


def _field(loc: Loc) -> str:
    """The field's own name: of an item of a list, the list's."""
    return next(str(part) for part in reversed(loc) if isinstance(part, str))
