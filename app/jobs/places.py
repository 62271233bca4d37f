"""Where queued runs stand in the order in which they will be claimed."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.tables import Run

FARTHEST_COUNTED = 1000
"""Runs of a slot class that are counted from the first on."""
TRUSTED_SECONDS = 1.0
"""What was that far back is taken to be so for this long: a flood of jobs would count the same runs again."""

# The first of each queue in its index's order, once for all who ask: a count for each would read them again.
_PLACES = text("""
SELECT first.id, first.place, asked.slot, first.priority, first.age, first.rank
FROM (SELECT DISTINCT slot FROM runs WHERE id = ANY(:ids) AND state = 'queued') AS asked
CROSS JOIN LATERAL (
    SELECT id, priority, age, rank, row_number() OVER (ORDER BY priority DESC, age, rank, id) AS place
    FROM runs WHERE state = 'queued' AND slot = asked.slot
    ORDER BY priority DESC, age, rank, id LIMIT :farthest
) AS first
WHERE first.id = ANY(:ids) OR first.place = :farthest
""")
Order = tuple[int, datetime, int, str]


class _Farthest(NamedTuple):
    order: Order
    until: float


_farthest: dict[str, _Farthest] = {}
"""By slot class, the last run that was counted, as this process has read it within `TRUSTED_SECONDS`."""


def queue_places(session: Session, run_ids: Sequence[str]) -> dict[str, int]:
    """Place, from 1, of each queued run among the queued runs of its slot class, in the order of claims.

    None is given where `FARTHEST_COUNTED` or more come first: counting a long queue would take longer than
    everything else that an answer does.
    """
    if not run_ids:
        return {}
    asked, found = set(run_ids), {}
    until = time.monotonic() + TRUSTED_SECONDS
    statement = {"ids": list(asked), "farthest": FARTHEST_COUNTED}
    for row in session.connection().execute(_PLACES, statement):
        if row.id in asked:
            found[row.id] = row.place
        if row.place == FARTHEST_COUNTED:
            _farthest[row.slot] = _Farthest((-row.priority, row.age, row.rank, row.id), until)
    return found


def is_far_back(run: Run) -> bool:
    """Whether a queued run comes after those that are counted, as far as is known without a look."""
    known = _farthest.get(run.slot)
    return known is not None and time.monotonic() < known.until and claim_order(run) > known.order


def claim_order(run: Run) -> Order:
    """Queued runs of a slot class are claimed in this order."""
    return -run.priority, run.age, run.rank, run.id


def forget_places() -> None:
    """The database is another."""
    _farthest.clear()
