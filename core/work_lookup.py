"""How a job finds the work of one stage: a live artifact, a live run of the same key, or a run of its own."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from core import queue
from core.database import Transaction
from core.errors import NotFound
from core.known_work import KnownWork
from core.states import LIVE
from core.tables import Artifact, ArtifactReference, BaseModelRow, Dataset, Job, JobInput, Run, StageRow
from core.work_items import NewRun

# Nearly always there is none, and mapped rows of many columns cost as much where there is none.
_ARTIFACTS_OF_KEYS = text("""
SELECT id FROM artifacts WHERE owner = :of_owner AND key = ANY(:of_keys) AND deleted_at IS NULL
ORDER BY id FOR KEY SHARE
""")


def find_run(
    tx: Transaction,
    job: Job,
    stage: StageRow,
    stages: Sequence[StageRow],
    new_id: str,
    known: KnownWork | None = None,
) -> str | None:
    """The run to wait for, a live one of the stage's key or a new one; None where it has artifacts by now.

    The caller has looked for artifacts in this transaction, and found none.
    """
    untouched = known is not None and stage.key in known.untouched
    if known is not None:
        # True once: whatever comes of the INSERT, the key is looked up from now on.
        known.untouched.discard(stage.key)
        if (queued := known.queued.pop(stage.key, None)) is not None:
            return queued
    while True:
        live = None if untouched else _join_live_run(tx, job, stage.key)
        if live is not None:
            return live
        untouched = False
        run_id = queue.enqueue(tx, new_run(tx, job, stage, stages, new_id))
        if run_id is not None:
            break
    # A publication may have come between the caller's look and the INSERT: a new statement sees it.
    if have_artifacts(tx, job.owner, [stage.key]):
        queue.cancel(tx, run_id)
        return None
    return run_id


def have_artifacts(tx: Transaction, owner: str, keys: Collection[str]) -> bool:
    """Whether one of the keys has artifacts; if so, they are kept from deletion until they are taken."""
    asked = {"of_owner": owner, "of_keys": list(keys)}
    return tx.session.connection().execute(_ARTIFACTS_OF_KEYS, asked).first() is not None


def finished_keys(session: Session, owner: str, keys: Collection[str]) -> set[str]:
    """Those of the keys whose work has artifacts now; nothing keeps them from deletion."""
    alive = Artifact.owner == owner, Artifact.key.in_(keys), Artifact.deleted_at.is_(None)
    return set(session.scalars(select(Artifact.key).where(*alive))) if keys else set()


def current_artifacts(tx: Transaction, owner: str, key: str) -> dict[str, Artifact]:
    """The key's artifacts by output name, kept from deletion until the transaction ends."""
    statement = (
        select(Artifact)
        .where(Artifact.owner == owner, Artifact.key == key, Artifact.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    return {artifact.output: artifact for artifact in tx.session.scalars(statement)}


def hold_artifacts(
    tx: Transaction, job: Job, stage: StageRow, known: KnownWork | None = None
) -> dict[str, Artifact]:
    """The stage's artifacts, with a reference to each recorded for the job: by `known`, where it is given."""
    held = known.artifacts.get(stage.key) if known is not None else None
    artifacts = current_artifacts(tx, job.owner, stage.key) if held is None else held
    rows = [{"artifact_id": a.id, "job_id": job.id, "stage_name": stage.name} for a in artifacts.values()]
    if known is not None:
        known.references += rows
    elif rows:
        tx.session.execute(upsert(ArtifactReference).values(rows).on_conflict_do_nothing())
    return artifacts


def locate_model(tx: Transaction, owner: str, name: str) -> dict[str, Any]:
    """Where a model's files are: a base model by its name, or `job_…:stage` of the same owner.

    Returns {"kind", "id", "name", "location", "sha256"}; raises NotFound.
    """
    if ":" not in name:
        base = tx.session.get(BaseModelRow, name)
        if base is None or base.deleted_at is not None:
            raise NotFound("There is no model of that name", model=name)
        return base_input(base)
    job_id, _, stage_name = name.partition(":")
    stage = tx.session.scalar(
        select(StageRow)
        .join(Job, Job.id == StageRow.job_id)
        .where(Job.id == job_id, Job.owner == owner, Job.deleted_at.is_(None), StageRow.name == stage_name)
    )
    artifact_id = stage.artifacts.get("model") if stage else None
    if artifact_id is None:
        raise NotFound("There is no trained model of that name, or it is not ready yet", model=name)
    artifact = tx.session.get_one(Artifact, artifact_id)
    if artifact.deleted_at is not None:
        raise NotFound("The trained model of that name has been deleted", model=name)
    return artifact_input(name, artifact)


def locate_base(tx: Transaction, located: dict[str, Any]) -> dict[str, Any] | None:
    """What a model that `locate_model` found was trained over as an adapter, as that tells it; else None.

    It may have been deleted since: the model's own files are whole.
    """
    if located["kind"] != "artifact":
        return None
    made_by = select(Run.inputs["base"]).join(Artifact, Artifact.run_id == Run.id)
    sources = tx.session.scalar(made_by.where(Artifact.id == located["id"]))
    return dict(sources[0]) if sources else None


def artifact_input(name: str, artifact: Artifact) -> dict[str, Any]:
    """A run's input that another run has made, under the name that people know it by."""
    return _input("artifact", artifact.id, name, artifact.location, artifact.sha256)


def base_input(base: BaseModelRow) -> dict[str, Any]:
    """A base model as a run's input."""
    return _input("model", base.name, base.name, f"file://{base.path}", base.sha256)


def rows_input(dataset: Dataset) -> dict[str, Any]:
    """A ready dataset's canonical rows as a run's input."""
    location, digest = dataset.rows_location or "", dataset.rows_sha256 or ""
    return _input("dataset", dataset.id, dataset.id, location, digest)


def _join_live_run(tx: Transaction, job: Job, key: str) -> str | None:
    """The key's live run, as urgent as this job, kept from ending until this job is seen to wait for it.

    Whoever ends a run looks for the jobs that wait only afterwards: without the lock it would miss this one,
    which is not committed yet, and nobody would look again.
    """
    of_key = Run.owner == job.owner, Run.key == key, Run.state.in_(LIVE)
    less_urgent = (Run.priority < job.priority) | (Run.age > job.created_at)
    found = tx.session.execute(select(Run.id, Run.slot, less_urgent).where(*of_key)).first()
    if found is None:
        return None
    run_id, slot, raised = found
    # The lock that will be needed at once: two jobs that both held the weaker one would wait for each other.
    held = select(Run.id).where(Run.id == run_id, Run.state.in_(LIVE))
    if tx.session.scalar(held.with_for_update(read=not raised, key_share=raised)) is None:
        return None
    if raised:
        queue.raise_priority(tx, run_id, job.priority, job.created_at)
    # A worker that looked meanwhile has passed over the locked row.
    tx.to_ring.append(slot)
    return run_id


def new_run(tx: Transaction, job: Job, stage: StageRow, stages: Sequence[StageRow], new_id: str) -> NewRun:
    """The run that a stage needs, its inputs found in the store."""
    by_name = {s.name: s for s in stages}
    inputs = {
        role: [_resolve(tx, job, by_name, source) for source in sources]
        for role, sources in stage.inputs.items()
    }
    return NewRun(
        id=new_id,
        kind=stage.kind,
        slot=stage.slot,
        owner=job.owner,
        subject_id=stage.name,
        config=stage.config,
        inputs=inputs,
        seed=stage.seed,
        key=stage.key,
        job_id=job.id,
        priority=job.priority,
        age=job.created_at,
        rank=stage.rank,
        request_id=job.request_id,
    )


def _resolve(
    tx: Transaction, job: Job, stages: dict[str, StageRow], source: dict[str, str]
) -> dict[str, Any]:
    """An input's place in the store, from the source that the plan names."""
    if source["kind"] == "stage":
        artifact = tx.session.get_one(Artifact, stages[source["name"]].artifacts[source["output"]])
        return artifact_input(source["name"], artifact)
    if source["kind"] == "dataset":
        return rows_input(tx.session.get_one(Dataset, source["name"]))
    return _held_model(tx, job, source["name"])


def _held_model(tx: Transaction, job: Job, name: str) -> dict[str, Any]:
    """The model that the name stood for when the job was made: the job's keys were made from it."""
    held = tx.session.get(JobInput, (job.id, "model", name))
    if held is None or held.artifact_id is None:
        return locate_model(tx, job.owner, name)
    return artifact_input(name, tx.session.get_one(Artifact, held.artifact_id))


def _input(kind: str, id_: str, name: str, location: str, sha256: str) -> dict[str, Any]:
    return {"kind": kind, "id": id_, "name": name, "location": location, "sha256": sha256}
