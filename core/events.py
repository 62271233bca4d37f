"""Events of a job: written under the job's row lock, so that their ids rise by one and commit in order."""

from collections.abc import Mapping
from typing import Any

from core.database import Transaction
from core.tables import Job


def write_event(
    tx: Transaction,
    job: Job,
    type_: str,
    message: str,
    *,
    stage: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Add the job's next event. The caller holds the job's row (SELECT … FOR UPDATE) in this transaction."""
    job.event_counter += 1
    tx.events.append(
        {
            "job_id": job.id,
            "id": job.event_counter,
            "type": type_,
            "stage": stage,
            "message": message,
            "data": dict(data or {}),
        }
    )
