"""What is known of the work of all stages of a new job, read at once instead of stage by stage.

Nothing here weakens how a stage finds its work: artifacts are held from deletion until the transaction ends,
and of a key of which nothing was known the INSERT of its run, and the look after that, tell what came since.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BindParameter, CompoundSelect, String, bindparam, func, select, union_all
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import defer

from core.database import Transaction
from core.states import RunState
from core.tables import Artifact, ArtifactReference, Job, Run, StageRow

Held = dict[str, Artifact]
"""Artifacts of one key by output name."""

_OWNER: BindParameter[str] = bindparam("of_owner")
_KEYS: BindParameter[Any] = bindparam("of_keys", type_=ARRAY(String))
_TOUCHED: CompoundSelect[str] = union_all(
    select(Artifact.key).where(
        Artifact.owner == _OWNER, Artifact.key == _KEYS.any_(), Artifact.deleted_at.is_(None)
    ),
    select(Run.key).where(Run.owner == _OWNER, Run.key == _KEYS.any_()),
)
_LOOK = select(
    func.clock_timestamp().label("moment"), func.array(_TOUCHED.scalar_subquery()).label("touched")
)
_ARTIFACTS = (
    select(Artifact)
    .where(Artifact.owner == _OWNER, Artifact.key == _KEYS.any_(), Artifact.deleted_at.is_(None))
    # Two jobs that share artifacts take them in one order.
    .order_by(Artifact.id)
    .with_for_update(read=True, key_share=True)
)
_RUNS = select(Run).where(Run.id == bindparam("ids", type_=ARRAY(String)).any_()).options(defer(Run.log))


@dataclass
class KnownWork:
    """untouched: keys of which there was neither an artifact nor a run of any state, until they are asked for
    again. queued: ids of runs that were queued beforehand, by key, until a stage waits for them. runs: those
    that made the artifacts, which have ended, so that what they say stays true, and those that are waited
    for. references: to be recorded."""

    untouched: set[str] = field(default_factory=set)
    queued: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Held] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    references: list[dict[str, str]] = field(default_factory=list)

    def keep_run(self, tx: Transaction, job: Job, stage: StageRow, *, new: bool) -> None:
        """Remember the run that a stage waits for. new: this transaction has just queued it."""
        if stage.run_id is None:
            return  # it was taken away at the same moment
        if new:
            state, place = RunState.QUEUED, {"priority": job.priority, "age": job.created_at}
            run = Run(id=stage.run_id, slot=stage.slot, rank=stage.rank, state=state, attempt=1, **place)
        else:
            run = tx.session.get_one(Run, stage.run_id)
        self.runs[run.id] = run

    def record_references(self, tx: Transaction) -> None:
        """Write down which artifacts the job's stages took."""
        if self.references:
            rows = upsert(ArtifactReference).values(self.references)
            tx.session.execute(rows.on_conflict_do_nothing())


@dataclass(frozen=True)
class Look:
    """A look at keys. moment: the database's clock. touched: those of which there is an artifact or a run."""

    moment: datetime
    touched: frozenset[str]


def look_for(tx: Transaction, owner: str, keys: Collection[str]) -> Look:
    """Which of these keys there is anything of, by one statement."""
    found = tx.session.connection().execute(_LOOK, {"of_owner": owner, "of_keys": list(keys)}).one()
    return Look(found.moment, frozenset(found.touched))


def look_at_all(tx: Transaction, owner: str, keys: Collection[str], touched: Collection[str]) -> KnownWork:
    """What there is of these keys. touched: those of them that a `Look` of this transaction has found."""
    known = KnownWork(set(keys) - set(touched))
    if touched:
        for artifact in tx.session.scalars(_ARTIFACTS, {"of_owner": owner, "of_keys": sorted(touched)}):
            known.artifacts.setdefault(artifact.key, {})[artifact.output] = artifact
        ids = sorted({a.run_id for held in known.artifacts.values() for a in held.values()})
        known.runs = {run.id: run for run in tx.session.scalars(_RUNS, {"ids": ids})} if ids else {}
    return known
