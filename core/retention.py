"""What rows stop naming, so that the sweep may free its bytes.

An artifact is needed while a job that is not deleted refers to it, a job that has not ended wants its key, or
an evaluation outside of jobs shows it. All outputs of a key are needed or not together: half a result would
be taken for a whole one.
"""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, exists, func, not_, null, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from core.database import Transaction, open_transaction
from core.states import FINISHED_JOB, TERMINAL
from core.tables import Artifact, ArtifactReference, Evaluation, Event, Job, Metric, Run, StageRow

BATCH = 200
PAGE = 5_000
"""Artifacts that one statement looks at."""
FORGOTTEN_JOBS = 20
"""Deleted jobs whose figures one transaction takes away: each may have some hundred thousand."""


def let_go(keep: timedelta, grace: timedelta) -> None:
    """Delete what has outlived its use, in short transactions.

    keep: how long unreferenced results and the checkpoints of dead runs serve as a cache. grace: how long a
    deleted job's events, metrics and logs stay.
    """
    last: str | None = ""
    while last is not None:
        with open_transaction() as tx:
            last = _note_unreferenced(tx, last)
    with open_transaction() as tx:
        expired = _expired(tx, keep)
    for start in range(0, len(expired), BATCH):
        with open_transaction() as tx:
            delete_unneeded(tx, expired[start : start + BATCH])
    last = ""
    while last is not None:
        with open_transaction() as tx:
            last = _drop_checkpoints(tx, last, keep)
    while True:
        with open_transaction() as tx:
            if not _forget_deleted_jobs(tx, grace):
                return


def delete_unneeded(tx: Transaction, artifact_ids: Collection[str]) -> list[str]:
    """Delete those of the artifacts' keys that nobody needs; returns the ids of what was deleted.

    Locked in one statement, looked for users in the next, which sees all that had them locked before. What
    another transaction holds at this moment is being used: it is passed over and not waited for, so that two
    who lock several artifacts in different orders never wait for one another.
    """
    keys = select(Artifact.owner, Artifact.key).where(Artifact.id.in_(artifact_ids))
    current = tuple_(Artifact.owner, Artifact.key).in_(keys), Artifact.deleted_at.is_(None)
    whole = tx.session.execute(select(Artifact.id, Artifact.owner, Artifact.key).where(*current)).all()
    ids = select(Artifact.id).where(Artifact.id.in_([row.id for row in whole]))
    locked = set(tx.session.scalars(ids.with_for_update(skip_locked=True)))
    in_use = {(row.owner, row.key) for row in whole if row.id not in locked}
    free = [row.id for row in whole if (row.owner, row.key) not in in_use]
    statement = (
        update(Artifact)
        .where(Artifact.id.in_(free), Artifact.deleted_at.is_(None), not_(_is_needed()))
        .values(deleted_at=func.clock_timestamp())
        .returning(Artifact.id)
        .execution_options(synchronize_session=False)
    )
    return list(tx.session.scalars(statement))


def _is_needed() -> ColumnElement[bool]:
    """Of an artifact. A dataset's rows are needed as long as the dataset: who deletes it deletes them."""
    twin = aliased(Artifact)
    same_key = twin.owner == Artifact.owner, twin.key == Artifact.key, twin.deleted_at.is_(None)
    referred = exists().where(*same_key, ArtifactReference.artifact_id == twin.id)
    unfinished = Job.owner == Artifact.owner, Job.status.not_in(FINISHED_JOB)
    wanted = exists().where(StageRow.key == Artifact.key, Job.id == StageRow.job_id, *unfinished)
    shown = exists().where(Evaluation.run_id == Artifact.run_id, Evaluation.deleted_at.is_(None))
    return or_(Artifact.kind == "validate_dataset", referred, wanted, shown)


def _note_unreferenced(tx: Transaction, after: str) -> str | None:
    """Of a page of artifacts beyond an id: since when nobody needs them. Returns the last id, or None."""
    page = select(Artifact.id).where(Artifact.id > after, Artifact.deleted_at.is_(None))
    last: str | None = tx.session.scalar(
        select(func.max(page.order_by(Artifact.id).limit(PAGE).subquery().c.id))
    )
    if last is None:
        return None
    within = Artifact.id > after, Artifact.id <= last, Artifact.deleted_at.is_(None)
    current = update(Artifact).where(*within)
    current = current.execution_options(synchronize_session=False)
    new = current.where(Artifact.unreferenced_at.is_(None), not_(_is_needed()))
    tx.session.execute(new.values(unreferenced_at=func.clock_timestamp()))
    again = current.where(Artifact.unreferenced_at.is_not(None), _is_needed())
    tx.session.execute(again.values(unreferenced_at=null()))
    return last


def _expired(tx: Transaction, keep: timedelta) -> list[str]:
    old = Artifact.deleted_at.is_(None), Artifact.unreferenced_at <= func.clock_timestamp() - keep
    return list(tx.session.scalars(select(Artifact.id).where(*old).order_by(Artifact.id)))


def _drop_checkpoints(tx: Transaction, after: str, keep: timedelta) -> str | None:
    """Of ended runs, beyond an id: what nobody will start from. Returns the last id seen; None at the end.

    Whoever starts from a checkpoint holds the row that names it until the row of its own run is there.
    """
    kept = Run.id > after, Run.checkpoint.is_not(None), Run.state.in_(TERMINAL)
    ids = list(tx.session.scalars(select(Run.id).where(*kept).order_by(Run.id).limit(BATCH)))
    if not ids:
        return None
    locked = select(Run.id).where(Run.id.in_(ids)).with_for_update(skip_locked=True)
    held = list(tx.session.scalars(locked))
    heir, made = aliased(Run), aliased(Artifact)
    started_from_it = exists().where(
        heir.owner == Run.owner,
        heir.key == Run.key,
        heir.state.not_in(TERMINAL),
        heir.checkpoint["location"].astext == Run.checkpoint["location"].astext,
    )
    published = exists().where(made.owner == Run.owner, made.key == Run.key, made.deleted_at.is_(None))
    asked_for = exists().where(
        StageRow.key == Run.key, Job.id == StageRow.job_id, Job.owner == Run.owner, Job.deleted_at.is_(None)
    )
    too_old = Run.finished_at <= func.clock_timestamp() - keep
    statement = update(Run).where(
        Run.id.in_(held), not_(started_from_it), or_(published, not_(asked_for), too_old)
    )
    unnamed = statement.values(checkpoint=null()).execution_options(synchronize_session=False)
    tx.session.execute(unnamed)
    return ids[-1]


def _forget_deleted_jobs(tx: Transaction, grace: timedelta) -> bool:
    """Events of deleted jobs; metrics and logs of runs that no other job shows. The rest is lineage."""
    events = exists().where(Event.job_id == Job.id)
    old = Job.deleted_at <= func.clock_timestamp() - grace, events
    jobs = list(tx.session.scalars(select(Job.id).where(*old).limit(FORGOTTEN_JOBS)))
    if not jobs:
        return False
    theirs = select(StageRow.run_id).where(StageRow.job_id.in_(jobs), StageRow.run_id.is_not(None))
    shown = exists().where(StageRow.run_id == Run.id, Job.id == StageRow.job_id, Job.deleted_at.is_(None))
    of_them = or_(Run.job_id.in_(jobs), Run.id.in_(theirs)), Run.state.in_(TERMINAL), not_(shown)
    runs = list(tx.session.scalars(select(Run.id).where(*of_them)))
    tx.session.execute(delete(Metric).where(Metric.run_id.in_(runs)))
    silent = update(Run).where(Run.id.in_(runs)).values(log="", metrics=null())
    tx.session.execute(silent.execution_options(synchronize_session=False))
    tx.session.execute(delete(Event).where(Event.job_id.in_(jobs)))
    return True
