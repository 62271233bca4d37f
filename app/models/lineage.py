"""What a trained model came from: reward models that it was made to please, rows that it was trained on."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from core.database import Transaction
from core.errors import NotFound
from core.tables import Artifact, Dataset, StageRow
from core.work_lookup import artifact_input, locate_model, rows_input

HELD_OUT = "eval"
"""The role of rows that a stage measures by and never trains on; that part of its rows of a hold-out."""


def reward_models_behind(tx: Transaction, owner: str, name: str) -> set[str]:
    """Digests of the reward models that a trained model was made to please."""
    job_id, _, stage_name = name.partition(":")
    stage = tx.session.get(StageRow, (job_id, stage_name)) if stage_name else None
    if stage is None:
        return set()
    found = set()
    for source in stage.inputs.get("reward_model", []):
        named = f"{job_id}:{source['name']}" if source["kind"] == "stage" else source["name"]
        # An earlier job's reward model may have been deleted since: then nobody can score with it either.
        with suppress(NotFound):
            found.add(str(locate_model(tx, owner, named)["sha256"]))
    return found


@dataclass
class TrainedOn:
    """What a model's stage, and all before it, were trained on.

    rows: files of it, as a run's inputs, by their places, without what a job held out. datasets: digests of
    the uploads that they were taken from. gone: whether some of the files are not there any more.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)
    gone: bool = False


def trained_on(tx: Transaction, name: str) -> TrainedOn | None:
    """What is known of a model's training; None of a base model: nothing here has trained it.

    The files are kept from deletion until the transaction ends.
    """
    job_id, colon, stage_name = name.partition(":")
    if not colon:
        return None
    found, seen = TrainedOn(), set[tuple[str, str]]()
    left = [(job_id, stage_name)]
    for place in left:
        if place not in seen:
            seen.add(place)
            left += _before(tx, *place, found)
    return found


def _before(tx: Transaction, job_id: str, stage_name: str, found: TrainedOn) -> list[tuple[str, str]]:
    """Adds the rows that a stage reads itself; returns the stages, each with its job's id, before it."""
    stage = tx.session.get(StageRow, (job_id, stage_name))
    if stage is None:
        found.gone = True
        return []
    before = []
    for source in [each for role, sources in stage.inputs.items() if role != HELD_OUT for each in sources]:
        if source["kind"] == "stage":
            made_by = tx.session.get_one(StageRow, (job_id, source["name"]))
            if made_by.kind == "hold_out":
                _add_part(tx, made_by, source["output"], found)
            else:
                before.append((job_id, made_by.name))
        elif source["kind"] == "dataset":
            _add_dataset(tx, source["name"], found)
        elif ":" in source["name"]:
            of_job, _, of_stage = source["name"].partition(":")
            before.append((of_job, of_stage))
    return before


def _add_part(tx: Transaction, hold_out: StageRow, output: str, found: TrainedOn) -> None:
    """The part of its rows that a hold-out gave for training."""
    of_its_own = output == HELD_OUT and HELD_OUT in hold_out.inputs
    given = hold_out.inputs[HELD_OUT if of_its_own else "data"]
    ids = [source["name"] for source in given if source["kind"] == "dataset"]
    digests = tx.session.scalars(select(Dataset.sha256).where(Dataset.id.in_(ids)))
    found.datasets |= {digest for digest in digests if digest is not None}
    artifact = tx.session.scalar(
        select(Artifact)
        .where(Artifact.id == hold_out.artifacts.get(output), Artifact.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    if artifact is None:
        found.gone = True
    else:
        name = f"{hold_out.job_id}:{hold_out.name}.{output}"
        found.rows.setdefault(artifact.location, artifact_input(name, artifact))


def _add_dataset(tx: Transaction, dataset_id: str, found: TrainedOn) -> None:
    dataset = tx.session.scalar(
        select(Dataset).where(Dataset.id == dataset_id).with_for_update(read=True, key_share=True)
    )
    if dataset is not None and dataset.sha256 is not None:
        found.datasets.add(dataset.sha256)
    if dataset is None or dataset.deleted_at is not None or dataset.rows_location is None:
        found.gone = True
    else:
        found.rows.setdefault(dataset.rows_location, rows_input(dataset))
