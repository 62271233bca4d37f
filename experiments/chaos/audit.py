"""What happened to every run, written down by the database itself: state, fence and moment of each change.

A trigger of the experiment's own: it sees what commits, whichever code wrote it.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from experiments.chaos.stack import NotInTime, Stack

_POLL_SECONDS = 0.02
_TRIGGER = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.changes (
    id bigserial PRIMARY KEY, run_id text, slot text, state text, fence bigint,
    at double precision DEFAULT extract(epoch FROM clock_timestamp())
);
CREATE INDEX ON chaos.changes (run_id);
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state <> OLD.state THEN
        INSERT INTO chaos.changes (run_id, slot, state, fence)
        VALUES (NEW.id, NEW.slot, NEW.state, NEW.fence);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER zz_chaos AFTER INSERT OR UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION chaos.note();
"""


@dataclass(frozen=True)
class Change:
    """at: seconds since 1970 by the database's clock, which is this machine's."""

    run_id: str
    slot: str
    state: str
    fence: int
    at: float


def install(stack: Stack) -> None:
    """Begin to write down."""
    stack.sql(_TRIGGER)


def changes(stack: Stack, run_id: str) -> list[Change]:
    """A run's changes of state, in order."""
    rows = stack.sql(
        "SELECT run_id, slot, state, fence, at FROM chaos.changes WHERE run_id = %s ORDER BY id", run_id
    )
    return [Change(*row) for row in rows]


def wait_for(stack: Stack, run_id: str, wanted: Callable[[Change], bool], seconds: float) -> Change:
    """The first change of a run that is wanted, also while the database comes and goes; raises NotInTime."""
    deadline = time.monotonic() + seconds
    while True:
        found: list[Change] = []
        # The database may be away: that is the fault's doing.
        with contextlib.suppress(psycopg.Error, OSError):
            found = [change for change in changes(stack, run_id) if wanted(change)]
        if found:
            return found[0]
        if time.monotonic() > deadline:
            raise NotInTime(f"run {run_id}: nothing of it within {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
