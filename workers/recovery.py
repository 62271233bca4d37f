"""Recovery, a thread in every worker: does what another worker, now gone, would have done."""

import logging
import time
from threading import Event, Thread

from sqlalchemy import literal_column, select, text
from sqlalchemy.exc import SQLAlchemyError

from core import queue, tallies
from core.aftermath import apply_run, unapplied_runs
from core.database import AWAY, Transaction, open_transaction
from core.heartbeats import beat, sign_off
from core.idempotency import purge_keys
from core.settings import settings
from core.tables import Run
from workers.sweeper import Sweeper

ADVISORY_LOCK = 4_403_191_945
BATCH = 100
STANDSTILL = 0.8
"""Share of a lease: a worker may have renewed last a fifth of it before all stood still."""

logger = logging.getLogger(__name__)


class Recovery:
    """One pass every few seconds; passes of several workers exclude one another by an advisory lock."""

    def __init__(self, worker_id: str, slot: str, concurrency: int) -> None:
        self._worker_id, self._slot, self._concurrency = worker_id, slot, concurrency
        self._stopping = Event()
        self._up_since: float | None = None
        self._last_look: float | None = None
        self._planned_pause = 0.0
        self._told_up_to = ""
        self._thread = Thread(target=self._work, name="recovery", daemon=True)
        self._sweeper = Sweeper()

    def start(self) -> None:
        """Begin with a sign of life at once."""
        self._thread.start()
        self._sweeper.start()

    def stop(self) -> None:
        """End, and sign off."""
        self._stopping.set()
        self._thread.join()
        self._sweeper.stop()
        try:
            with open_transaction() as tx:
                sign_off(tx, self._worker_id)
        except SQLAlchemyError:
            logger.info("no sign-off: the database is away")

    def _work(self) -> None:
        while True:
            try:
                with open_transaction() as tx:
                    beat(tx, self._worker_id, self._slot, self._concurrency)
                self.pass_once()
                tallies.flush()
            except SQLAlchemyError as error:
                self._up_since = None
                logger.warning("recovery: the database is away: %s", type(error).__name__)
            self._planned_pause = self._pause()
            if self._stopping.wait(self._planned_pause):
                return

    def _pause(self) -> float:
        """Seconds to the next pass: the one that may expire leases comes as soon as it may."""
        if self._up_since is None:
            return settings().recovery_seconds
        of_grace = self._up_since + settings().lease_seconds - time.monotonic()
        return min(settings().recovery_seconds, of_grace) if of_grace > 0 else settings().recovery_seconds

    def pass_once(self) -> None:
        """Expire leases, carry finished runs to their jobs, ring for what waits."""
        self._notice_standstill()
        self._up_since = self._up_since or time.monotonic()
        with open_transaction() as tx:
            if not tx.session.scalar(text("SELECT pg_try_advisory_xact_lock(:id)"), {"id": ADVISORY_LOCK}):
                return
            # Workers could not renew while the database was away: each gets a whole lease to do so first.
            database_seen = time.monotonic() - self._up_since >= settings().lease_seconds
            expired = queue.expire_leases(tx) if database_seen else []
            tallies.count(tallies.LEASES_LOST, len(expired))
            left_behind = unapplied_runs(tx, BATCH, self._told_up_to)
            tx.to_ring.extend(_slots_with_work(tx))
            purge_keys(tx)
        # Round and round: as many that always fail as make a page would else keep the others from their turn.
        self._told_up_to = left_behind[-1] if len(left_behind) == BATCH else ""
        for run_id in dict.fromkeys([*expired, *left_behind]):
            logger.info("recovery: run %s", run_id)
            try:
                apply_run(run_id)
            except AWAY:
                raise
            except Exception:  # a border: one run that cannot be carried on must not keep the others
                logger.exception("recovery: run %s", run_id)
            self._notice_standstill()

    def _notice_standstill(self) -> None:
        """Most of a lease's time without a look that was not meant as a pause: this process stood still,
        perhaps with its whole machine, database and all, and nobody could renew. By the calendar's clock: a
        suspended machine's other one stands."""
        before, self._last_look = self._last_look, time.time()
        planned, self._planned_pause = self._planned_pause, 0.0
        if before is not None and self._last_look - before - planned >= STANDSTILL * settings().lease_seconds:
            self._up_since = None


def _slots_with_work(tx: Transaction) -> list[str]:
    return list(
        tx.session.scalars(select(Run.slot).where(Run.state == literal_column("'queued'")).distinct())
    )
