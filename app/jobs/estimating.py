"""What each stage of a plan will cost: rows, models and scores looked up for the library's estimates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.leaves import Leaves
from app.models.token_lengths import sampled_rows, token_lengths
from core.settings import settings
from core.states import DatasetState
from core.storage import storage
from core.tables import Artifact, BaseModelRow, Dataset
from mpo.config import SplitStage, Stage
from mpo.errors import MPOError
from mpo.estimates_excess import Excess, find_excess, told_of_lengths, told_of_padding
from mpo.plan import PlannedStage, Source
from mpo.roles import MODEL_ROLES
from mpo.stage_graph import lineages
from mpo.training_config import TrainingConfig

if TYPE_CHECKING:
    from mpo.estimates_rows import Rows
    from mpo.estimates_shape import ModelShape
    from mpo.estimates_work import LengthsOf


@dataclass(frozen=True)
class StageCost:
    """What a stage will cost; None where nobody can tell, and problems say why.

    assumed_seconds: on the machine that `mpo/estimates_time.py` assumes. parameters: of its model. excess:
    where the memory is more than there is, by rows that have been counted."""

    tokens: int | None = None
    memory_bytes: int | None = None
    assumed_seconds: float | None = None
    parameters: int = 0
    problems: list[str] = field(default_factory=list)
    excess: Excess | None = None


def stage_costs(
    session: Session, owner: str, stages: Sequence[PlannedStage], leaves: Leaves, keys: Mapping[str, str]
) -> dict[str, StageCost]:
    """The cost of every stage by name. keys: of the stages, by which scores that exist are found."""
    # Imported late, as all that counts rows: the server starts without pyarrow and numpy.
    from mpo.estimates_rows import Rows, rows_by_source

    def known_shares(split: PlannedStage) -> Mapping[str, float] | None:
        source = split.inputs["scores"][0]
        key = keys.get(source.name) if source.kind == "stage" else None
        location = _scores_location(session, owner, key) if key else None
        assert isinstance(split.config, SplitStage)
        return _shares(location, split.config) if location else None

    datasets = {
        source: Rows.of(source, sampled_rows(dataset))
        if _is_ready(dataset)
        else Rows.unknown(source, f"{dataset.id} is {dataset.status}: its rows are counted once it is ready")
        for source, dataset in leaves.datasets.items()
    }
    rows = rows_by_source(stages, datasets, known_shares)
    bases = _bases(stages, leaves)
    return {stage.name: _cost(stage, stages, rows, leaves, bases.get(stage.name)) for stage in stages}


def _cost(
    stage: PlannedStage,
    plan: Sequence[PlannedStage],
    rows: Mapping[Source, "Rows"],
    leaves: Leaves,
    base: BaseModelRow | None,
) -> StageCost:
    from mpo.estimates_machine import Machine
    from mpo.estimates_memory import stage_memory
    from mpo.estimates_time import assumed_seconds
    from mpo.estimates_work import are_lengths_known, longest, stage_work

    limit = settings().training_memory_bytes
    machine = Machine(settings().training_device, settings().ranks, settings().sharded)
    problems = list(dict.fromkeys(rows[s].why for s in stage.sources() if s in rows and rows[s].why))
    shape: ModelShape | None = None
    lengths_of: LengthsOf = lambda _dataset: None  # noqa: E731  # a stage without a model asks for none
    if isinstance(stage.config, TrainingConfig):
        if base is None:
            return StageCost(problems=[*problems, "Nothing tells the model whose shape this stage has"])
        try:
            shape = _shape(base.path, base.sha256)
            counted = {s: token_lengths(d, base) for s, d in leaves.datasets.items() if _is_ready(d)}
        except (MPOError, OSError) as error:
            detail = error.detail if isinstance(error, MPOError) else type(error).__name__
            return StageCost(problems=[*problems, f"Nothing is estimated: {detail}"])
        lengths_of = counted.get

    def memory_of(config: Stage, of: "ModelShape | None" = shape) -> int:
        changed = replace(stage, config=config)
        if of is None:
            return stage_memory(changed)
        return stage_memory(changed, of, longest(changed, rows, lengths_of), machine, plan)

    memory = memory_of(stage.config)
    at_least = partial(memory_of, of=shape and replace(shape, packs=True))
    excess = None
    if shape is not None and not are_lengths_known(stage, rows, lengths_of):
        problems += told_of_lengths(memory, limit)
    elif excess := find_excess(stage.config, limit, at_least):
        problems.append(excess.detail)
    else:
        problems += told_of_padding(memory, limit)
    work = stage_work(stage, rows, lengths_of)
    if work is None:
        return StageCost(memory_bytes=memory, problems=problems, excess=excess)
    seconds = assumed_seconds(stage, work, shape, machine)
    return StageCost(round(work.tokens), memory, seconds, shape.parameters if shape else 0, problems, excess)


def _bases(stages: Sequence[PlannedStage], leaves: Leaves) -> dict[str, BaseModelRow]:
    """The base model that each stage's networks descend from, by stage; of several inputs the first one's."""
    lineage = lineages(stages)
    found: dict[str, BaseModelRow] = {}
    for stage in stages:
        source = next((stage.inputs[role][0] for role in MODEL_ROLES if stage.inputs.get(role)), None)
        if source is None:
            continue
        start = lineage[source.name].start if source.kind == "stage" else source
        if start is not None and start in leaves.models:
            found[stage.name] = leaves.models[start]
    return found


def _is_ready(dataset: Dataset) -> bool:
    return dataset.status == DatasetState.READY and dataset.rows_location is not None


def _scores_location(session: Session, owner: str, key: str) -> str | None:
    statement = select(Artifact.location).where(
        Artifact.owner == owner,
        Artifact.key == key,
        Artifact.output == "scores",
        Artifact.deleted_at.is_(None),
    )
    return session.scalar(statement.limit(1))


# Neither an artifact nor a base model's folder changes under its name.
@lru_cache(maxsize=256)
def _shares(location: str, split: SplitStage) -> Mapping[str, float] | None:
    import numpy as np
    from pyarrow import parquet

    from mpo.gap_cuts import cut_gaps

    try:
        with storage().open_read(location) as file:
            gaps = np.sort(parquet.read_table(file, columns=["gap"]).column("gap").to_numpy())
    except (OSError, ValueError):  # damaged or gone: whoever runs on them will say so
        return None
    if not len(gaps):
        return None
    shares = {"easy": 0.0, "difficult": 0.0, "dropped": 0.0}
    for cut in cut_gaps(gaps, split)[1]:
        shares[cut.part] += (cut.stop - cut.start) / len(gaps)
    return shares


@lru_cache(maxsize=256)
def _shape(folder: str, _sha256: str) -> "ModelShape":
    from mpo.estimates_shape import read_shape

    return read_shape(Path(folder))
