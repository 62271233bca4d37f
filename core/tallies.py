"""Figures that workers count: kept in memory, added to the database now and then, told by every API.

A worker has no port that a scraper could ask, and a gauge of rows cannot tell what happened in between. What
a killed worker has not written yet is lost: these are figures, not facts.
"""

from collections import defaultdict
from collections.abc import Iterable
from threading import Lock

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from core.database import open_transaction
from core.tables import TallyRow

Labels = tuple[tuple[str, str], ...]

CLAIM_SECONDS = "mpo_claim_seconds"
STAGE_SECONDS = "mpo_stage_seconds"
CRASHES = "mpo_run_crashes"
LEASES_LOST = "mpo_leases_lost"
BUCKETS: dict[str, tuple[float, ...]] = {
    CLAIM_SECONDS: (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600),
    STAGE_SECONDS: (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600),
}
"""Upper bounds in seconds of what is observed; infinity comes on top."""

_lock = Lock()
_counted: dict[tuple[str, Labels], float] = defaultdict(float)


def count(name: str, amount: float = 1.0, **labels: str) -> None:
    """Add to a sum."""
    with _lock:
        _counted[name, tuple(sorted(labels.items()))] += amount


def observe(name: str, seconds: float, **labels: str) -> None:
    """Put a duration into its histogram, which `BUCKETS` must name."""
    bound = next((each for each in BUCKETS[name] if seconds <= each), None)
    count(f"{name}_bucket", 1.0, le="+Inf" if bound is None else str(float(bound)), **labels)
    count(f"{name}_sum", max(seconds, 0.0), **labels)


def flush() -> None:
    """Add what was counted to the database; raises SQLAlchemyError, and then keeps it for the next time."""
    with _lock:
        taken = dict(_counted)
        _counted.clear()
    # Sorted: two workers that write the same rows must not wait for each other crosswise.
    rows = [
        {"name": name, "labels": dict(labels), "value": value}
        for (name, labels), value in sorted(taken.items())
    ]
    if not rows:
        return
    try:
        with open_transaction() as tx:
            statement = upsert(TallyRow).values(rows)
            raised = TallyRow.value + statement.excluded.value
            tx.session.execute(
                statement.on_conflict_do_update(
                    index_elements=[TallyRow.name, TallyRow.labels], set_={"value": raised}
                )
            )
    except BaseException:
        with _lock:
            for key, value in taken.items():
                _counted[key] += value
        raise


def read(session: Session, names: Iterable[str]) -> dict[tuple[str, Labels], float]:
    """All sums of these names, histograms by the names of their parts."""
    columns = select(TallyRow.name, TallyRow.labels, TallyRow.value)
    rows = session.execute(columns.where(TallyRow.name.in_(list(names))))
    return {(name, tuple(sorted(labels.items()))): value for name, labels, value in rows}
