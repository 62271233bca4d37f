"""Use cases of operations: the queue, workers, keys."""

from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.authentication import Caller, forget_callers
from app.operations.schemas import KeyCreate, KeyView, QueueView, SlotView
from core.api_keys import digest, new_secret, visible_prefix
from core.database import Transaction
from core.errors import NotFound
from core.heartbeats import live_workers
from core.ids import new_id
from core.states import RunState
from core.tables import ApiKey, Run

SLOTS: tuple[Literal["cpu", "gpu"], ...] = ("cpu", "gpu")
UNFINISHED = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)


def read_queue(session: Session) -> QueueView:
    """How many runs wait and run in each slot class, and who could take them."""
    age = func.extract("epoch", func.clock_timestamp() - func.min(Run.queued_at))
    counted = session.execute(
        select(Run.slot, Run.state, func.count(), age)
        .where(Run.state.in_(UNFINISHED))
        .group_by(Run.slot, Run.state)
    ).all()
    counts = {(slot, state): (count, float(oldest)) for slot, state, count, oldest in counted}
    workers = live_workers(session)
    slots = []
    for slot in SLOTS:
        here = [worker for worker in workers if worker.slot == slot]
        queued, oldest = counts.get((slot, RunState.QUEUED), (0, None))
        view = SlotView(
            slot=slot,
            queued=queued,
            running=counts.get((slot, RunState.RUNNING), (0, None))[0],
            paused=counts.get((slot, RunState.PAUSED), (0, None))[0],
            workers=len(here),
            concurrency=sum(worker.concurrency for worker in here),
            oldest_queued_seconds=oldest,
        )
        slots.append(view)
    return QueueView(slots=slots)


def create_key(tx: Transaction, caller: Caller, body: KeyCreate) -> KeyView:
    """Make a key; its secret is in the answer and nowhere else."""
    secret = new_secret()
    expires_at = datetime.fromtimestamp(body.expires_at, UTC) if body.expires_at is not None else None
    key = ApiKey(
        id=new_id("api_key"),
        owner=body.owner or caller.owner,
        name=body.name,
        prefix=visible_prefix(secret),
        secret_sha256=digest(secret),
        scopes=list(dict.fromkeys(body.scopes)),
        expires_at=expires_at,
    )
    tx.session.add(key)
    tx.session.flush()
    shown = {name: getattr(key, name) for name in ("id", "prefix", "name", "scopes", "owner", "expires_at")}
    return KeyView.model_validate({**shown, "key": secret})


def delete_key(tx: Transaction, key_id: str) -> None:
    """From now on the key opens nothing; raises NotFound."""
    key = tx.session.get(ApiKey, key_id, with_for_update=True)
    if key is None or key.deleted_at is not None:
        raise NotFound(f"There is no key {key_id!r}")
    key.deleted_at = tx.session.scalar(select(func.clock_timestamp()))
    forget_callers()
