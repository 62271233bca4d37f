"""The only writers of a run's state: enqueue, claim, renew, publish, fail, cancel.

Renewing, recording and publishing test id, fence and `state = 'running'`, never the lease: a late renewal
that nobody has overtaken succeeds, so that an outage of the database kills no healthy run.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from core.database import Transaction
from core.errors import FenceOver, ForbiddenTransition
from core.ids import new_id
from core.logs import bound_request
from core.queue_statements import ENQUEUE
from core.settings import settings
from core.states import LIVE, TRANSITIONS, RunState
from core.tables import Artifact, Metric, Run
from core.work_items import ClaimedRun, NewArtifact, NewRun

POISON_CRASHES = 3
POISON_LEASES = 10
LOG_CHARACTERS = 64_000
_ENCODE = json.JSONEncoder(default=datetime.isoformat).encode


def enqueue(tx: Transaction, new: NewRun) -> str | None:
    """Queue a run; None where one of the same owner and key is already queued or running.

    Starts from the key's newest recorded checkpoint, whichever attempt left it.
    """
    return next(iter(enqueue_all(tx, [new])), None)


def enqueue_all(tx: Transaction, new: Sequence[NewRun]) -> set[str]:
    """Queue several by one statement; returns the ids of those of which `enqueue` would not give None."""
    rows = [{**vars(each), "id": each.id or new_id("run"), "request_id": _cause(each)} for each in new]
    queued = set(tx.session.connection().execute(ENQUEUE, {"rows": _ENCODE(rows)}).scalars())
    tx.to_ring += [row["slot"] for row in rows if row["id"] in queued]
    return queued


def claim(tx: Transaction, slot: str, worker_id: str) -> ClaimedRun | None:
    """Take the best runnable run of a slot class, or None: by priority, its job's age, place in the plan."""
    best = (
        select(Run.id)
        # Written out: a plan that is kept for any state could not use the queue's index.
        .where(Run.state == literal_column("'queued'"), Run.slot == slot)
        .order_by(Run.priority.desc(), Run.age, Run.rank, Run.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    run_id = tx.session.scalar(best)
    if run_id is None:
        return None
    claimed = (
        update(Run)
        .where(Run.id == run_id, Run.state == RunState.QUEUED)
        .values(
            state=RunState.RUNNING,
            # Shuts out a worker whose lease ran out but who still runs.
            fence=Run.fence + 1,
            lease_until=_lease_end(),
            claimed_at=func.clock_timestamp(),
            worker_id=worker_id,
            started_at=func.coalesce(Run.started_at, func.clock_timestamp()),
        )
        .returning(*(getattr(Run, name) for name in ClaimedRun.__dataclass_fields__))
    )
    return ClaimedRun(*tx.session.execute(claimed).one())


def renew(tx: Transaction, claimed: ClaimedRun) -> None:
    """Prolong the lease; raises FenceOver, with the run's state, where the run is no longer ours."""
    # Nobody is shown a lease: whoever waits for a change of the run is not woken by it.
    _update_held(tx, claimed, lease_until=_lease_end(), version=Run.version)


def record_progress(
    tx: Transaction,
    claimed: ClaimedRun,
    progress: Mapping[str, Any],
    metrics: Mapping[int, Mapping[str, float]],
    log: str,
) -> None:
    """Write what the run reported: its progress, its metrics by step, and the end of its output."""
    latest = dict(metrics[max(metrics)]) if metrics else None
    values: dict[str, Any] = {"progress": dict(progress), "log": log[-LOG_CHARACTERS:]}
    if latest is not None:
        values["metrics"] = latest
    _update_held(tx, claimed, **values)
    if metrics:
        rows = [{"run_id": claimed.id, "step": step, "values": dict(v)} for step, v in metrics.items()]
        statement = upsert(Metric).values(rows)
        tx.session.execute(
            statement.on_conflict_do_update(
                index_elements=[Metric.run_id, Metric.step], set_={"values": statement.excluded["values"]}
            )
        )


def record_checkpoint(tx: Transaction, claimed: ClaimedRun, location: str, step: int) -> str | None:
    """Make a stored checkpoint the one to resume from; returns the location that it replaces, if ours.

    Progress has been made, so the counters of crashes and lost leases start anew.
    """
    stands = select(Run.checkpoint, Run.state).where(Run.id == claimed.id).with_for_update()
    held, state = tx.session.execute(stands).one()
    _update_held(
        tx,
        claimed,
        also_paused=True,
        checkpoint={"location": location, "step": step},
        crashes_without_progress=0,
        leases_lost_without_progress=0,
    )
    if state == RunState.PAUSED:
        # A run of another job may have started from the one that this replaces.
        return None
    replaced = held["location"] if held else None
    ours = f"runs/{claimed.id}/{claimed.fence}/"
    return replaced if replaced and replaced.startswith(ours) and replaced != location else None


def publish(
    tx: Transaction, claimed: ClaimedRun, artifacts: Sequence[NewArtifact], summary: Mapping[str, Any]
) -> None:
    """Make the outputs the run's result: one conditional UPDATE, so at most one fence can.

    Raises FenceOver. An output that the key already has keeps its first artifact: they are interchangeable.
    """
    _update_held(
        tx,
        claimed,
        state=RunState.SUCCEEDED,
        summary=dict(summary),
        lease_until=None,
        finished_at=func.clock_timestamp(),
    )
    rows = [
        {
            "id": new_id("artifact"),
            "owner": claimed.owner,
            "run_id": claimed.id,
            "job_id": claimed.job_id,
            "key": claimed.key or claimed.id,
            "kind": claimed.kind,
            "config": claimed.config,
            **vars(artifact),
        }
        for artifact in artifacts
    ]
    if rows:
        tx.session.execute(upsert(Artifact).values(rows).on_conflict_do_nothing())


def was_published(tx: Transaction, claimed: ClaimedRun) -> bool:
    """Whether this very attempt succeeded: for a publisher that lost the answer to its commit."""
    row = tx.session.execute(select(Run.state, Run.fence).where(Run.id == claimed.id)).one()
    return bool(row.state == RunState.SUCCEEDED and row.fence == claimed.fence)


def fail(tx: Transaction, claimed: ClaimedRun, error: Mapping[str, Any]) -> None:
    """End the run as failed, with {"code", "message", "output"}; raises FenceOver."""
    _update_held(
        tx,
        claimed,
        state=RunState.FAILED,
        error=dict(error),
        lease_until=None,
        finished_at=func.clock_timestamp(),
    )


def crash(tx: Transaction, claimed: ClaimedRun, error: Mapping[str, Any]) -> bool:
    """The child died while its worker watched: queue the run again, or fail it as poison (then True)."""
    crashes = tx.session.scalar(
        select(Run.crashes_without_progress).where(Run.id == claimed.id).with_for_update()
    )
    if (crashes or 0) + 1 >= POISON_CRASHES:
        fail(tx, claimed, error)
        return True
    _update_held(
        tx,
        claimed,
        state=RunState.QUEUED,
        queued_at=func.clock_timestamp(),
        lease_until=None,
        worker_id=None,
        attempt=Run.attempt + 1,
        crashes_without_progress=Run.crashes_without_progress + 1,
    )
    tx.to_ring.append(claimed.slot)
    return False


def give_back(tx: Transaction, claimed: ClaimedRun) -> None:
    """A graceful stop: queue the run again; counts nothing."""
    now = func.clock_timestamp()
    _update_held(tx, claimed, state=RunState.QUEUED, queued_at=now, lease_until=None, worker_id=None)
    tx.to_ring.append(claimed.slot)


def cancel(tx: Transaction, run_id: str) -> bool:
    """Write `cancelled` at once; the worker learns it at its next renewal. False where it had ended."""
    return _move(tx, run_id, RunState.CANCELLED, finished_at=func.clock_timestamp(), lease_until=None)


def pause(tx: Transaction, run_id: str) -> bool:
    """Write `paused`; the worker records one more checkpoint and lets go. False where it had ended."""
    return _move(tx, run_id, RunState.PAUSED, lease_until=None)


def resume(tx: Transaction, run_id: str) -> None:
    """Queue a paused run again; raises ForbiddenTransition from any other state."""
    slot = tx.session.scalar(select(Run.slot).where(Run.id == run_id))
    fresh = {"worker_id": None, "applied": False, "queued_at": func.clock_timestamp()}
    if slot is None or not _move(tx, run_id, RunState.QUEUED, **fresh):
        raise ForbiddenTransition(run_id=run_id)
    tx.to_ring.append(slot)


def raise_priority(tx: Transaction, run_id: str, priority: int, age: datetime) -> None:
    """A job waits on this run: it is as urgent as the most urgent job that wants it."""
    tx.session.execute(
        update(Run)
        .where(Run.id == run_id, Run.state.in_(LIVE), (Run.priority < priority) | (Run.age > age))
        .values(priority=func.greatest(Run.priority, priority), age=func.least(Run.age, age))
    )


def expire_leases(tx: Transaction) -> list[str]:
    """Queue again what nobody renews, or fail it after too many losses; returns the runs' ids."""
    lost = Run.leases_lost_without_progress + 1
    poisoned = lost >= POISON_LEASES
    over = Run.state == RunState.RUNNING, Run.lease_until < func.clock_timestamp()
    # What somebody holds at this moment is being renewed, ended or taken away: the next pass looks again.
    free = select(Run.id).where(*over).order_by(Run.id).with_for_update(skip_locked=True)
    statement = (
        update(Run)
        .where(Run.id.in_(free.scalar_subquery()))
        .values(
            state=case((poisoned, RunState.FAILED.value), else_=RunState.QUEUED.value),
            finished_at=case((poisoned, func.clock_timestamp()), else_=None),
            error=case(
                (
                    poisoned,
                    func.jsonb_build_object(
                        "code", "worker_lost", "message", "Its worker was lost too often", "output", None
                    ),
                ),
                else_=None,
            ),
            lease_until=None,
            queued_at=func.clock_timestamp(),
            worker_id=None,
            attempt=Run.attempt + 1,
            leases_lost_without_progress=lost,
        )
        .returning(Run.id, Run.slot)
    )
    rows = tx.session.execute(statement).all()
    tx.to_ring.extend(row.slot for row in rows)
    return [row.id for row in rows]


def _cause(new: NewRun) -> str | None:
    """The request that wants a run: of a job's, that which made the job, whoever moves the job on."""
    return new.request_id if new.job_id is not None else bound_request()


def _lease_end() -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=settings().lease_seconds)


def _held(claimed: ClaimedRun, *, also_paused: bool = False) -> ColumnElement[bool]:
    states = [RunState.RUNNING, RunState.PAUSED] if also_paused else [RunState.RUNNING]
    return and_(Run.id == claimed.id, Run.fence == claimed.fence, Run.state.in_(states))


def _update_held(tx: Transaction, claimed: ClaimedRun, *, also_paused: bool = False, **values: Any) -> None:
    statement = update(Run).where(_held(claimed, also_paused=also_paused)).values(**values)
    if tx.session.execute(statement.returning(Run.id)).first() is None:
        state = tx.session.scalar(select(Run.state).where(Run.id == claimed.id))
        raise FenceOver(run_id=claimed.id, fence=claimed.fence, state=state)


def _move(tx: Transaction, run_id: str, target: RunState, **values: Any) -> bool:
    sources = [state for state, targets in TRANSITIONS.items() if target in targets]
    statement = update(Run).where(Run.id == run_id, Run.state.in_(sources)).values(state=target, **values)
    moved = tx.session.execute(statement.returning(Run.id)).first() is not None
    if moved and target in (RunState.CANCELLED, RunState.PAUSED):
        tx.taken_away.append(run_id)
    return moved
