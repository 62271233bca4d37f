"""Where queued runs stand in the order in which they will be claimed."""

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

FARTHEST_COUNTED = 1000
"""Runs of a slot class that are counted from the first on."""

# The first of each queue in its index's order, once for all who ask: a count for each would read them again.
_PLACES = text("""
SELECT first.id, first.place
FROM (SELECT DISTINCT slot FROM runs WHERE id = ANY(:ids) AND state = 'queued') AS asked
CROSS JOIN LATERAL (
    SELECT id, row_number() OVER (ORDER BY priority DESC, age, rank, id) AS place
    FROM runs WHERE state = 'queued' AND slot = asked.slot
    ORDER BY priority DESC, age, rank, id LIMIT :farthest
) AS first
WHERE first.id = ANY(:ids)
""")


def queue_places(session: Session, run_ids: Sequence[str]) -> dict[str, int]:
    """Place, from 1, of each queued run among the queued runs of its slot class, in the order of claims.

    None is given where `FARTHEST_COUNTED` or more come first: counting a long queue would take longer than
    everything else that an answer does.
    """
    if not run_ids:
        return {}
    asked = {"ids": list(run_ids), "farthest": FARTHEST_COUNTED}
    return {row.id: row.place for row in session.connection().execute(_PLACES, asked)}
