"""Signs of life of workers and samplers, so that readiness can name what is missing."""

import os
import socket
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from core.database import Transaction
from core.tables import WorkerRow

SEEN_WITHIN = timedelta(seconds=15)
FORGET_AFTER = timedelta(hours=1)


def beat(tx: Transaction, worker_id: str, slot: str, concurrency: int) -> None:
    """Say that this process is alive; called every few seconds."""
    row = {
        "id": worker_id,
        "slot": slot,
        "concurrency": concurrency,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    statement = upsert(WorkerRow).values(row)
    tx.session.execute(
        statement.on_conflict_do_update(
            index_elements=[WorkerRow.id], set_={"seen_at": func.clock_timestamp()}
        )
    )
    tx.session.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.clock_timestamp() - FORGET_AFTER))


def sign_off(tx: Transaction, worker_id: str) -> None:
    """This process ends in good order."""
    tx.session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def live_workers(session: Session) -> list[WorkerRow]:
    """Processes heard of lately, by slot and id."""
    statement = (
        select(WorkerRow)
        .where(WorkerRow.seen_at > func.clock_timestamp() - SEEN_WITHIN)
        .order_by(WorkerRow.slot, WorkerRow.id)
    )
    return list(session.scalars(statement))
