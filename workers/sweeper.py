"""The sweep, on a thread of every worker: rarely, in bounded steps, one worker at a time.

Not on recovery's own thread: a store that does not answer must not keep leases from expiring.
"""

import logging
import time
from datetime import timedelta
from threading import Event, Thread

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import SQLAlchemyError

from core.database import Transaction, open_transaction
from core.retention import let_go
from core.settings import settings
from core.storage import storage
from core.sweeping import RUNS, Freed, Sweep
from core.tables import SweepRow
from workers.scratch import clear_scratch, scratch_folder, token_cache

STORE = "store"
RUNS_A_BATCH = 50
STEP_SECONDS = 20.0
"""After a step of this length the next one, of any worker, goes on where it ended."""
STOP_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Sweeper:
    """Wakes every sweep_seconds; whoever finds that nobody has swept for as long does the next step."""

    def __init__(self) -> None:
        self._stopping = Event()
        self._thread = Thread(target=self._work, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin, with this machine's scratch folder."""
        self._thread.start()

    def stop(self) -> None:
        """End, soon; a step that is cut short does no harm: what is left of a folder goes with the next."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                clear_scratch(scratch_folder(), timedelta(seconds=settings().sweep_grace_seconds))
                token_cache().drop_unused(settings().keep_unreferenced_seconds)
                step(self._stopping)
            except (SQLAlchemyError, OSError) as error:
                logger.warning("sweep: put off: %s", type(error).__name__)
            except Exception:  # a border: a defect in the sweep must not end it for good
                logger.exception("sweep")
            self._stopping.wait(settings().sweep_seconds)


def step(stopping: Event) -> Freed | None:
    """The next step, where it is due: frees what is free among as many runs as the time allows."""
    with open_transaction() as tx:
        after = _take_step(tx)
    if after is None:
        return None
    now = settings()
    grace = timedelta(seconds=now.sweep_grace_seconds)
    try:
        let_go(timedelta(seconds=now.keep_unreferenced_seconds), grace)
    except SQLAlchemyError:
        # What rows have let go of already is freed all the same.
        logger.exception("sweep: rows")
    sweep = Sweep(storage(), grace, grace)
    last = walk(sweep, after, time.monotonic() + STEP_SECONDS, stopping)
    with open_transaction() as tx:
        tx.session.execute(update(SweepRow).where(SweepRow.name == STORE).values(after=last))
    if sweep.freed.places:
        logger.info("sweep: %s", sweep.freed)
    return sweep.freed


def walk(sweep: Sweep, after: str, until: float, stopping: Event) -> str:
    """Sweep the runs beyond an id, in order, and at the end the uploads; returns where the next step begins.

    until: on the clock of time.monotonic.
    """
    runs = [name for name in sweep.storage.names(RUNS) if name > after]
    for start in range(0, len(runs), RUNS_A_BATCH):
        if time.monotonic() > until or stopping.is_set():
            return after
        batch = runs[start : start + RUNS_A_BATCH]
        sweep.runs(batch)
        after = batch[-1]
    sweep.uploads()
    return ""


def _take_step(tx: Transaction) -> str | None:
    """The place to go on from, if a step is due and nobody else takes it; else None."""
    first = {"name": STORE, "stepped_at": func.to_timestamp(0)}
    tx.session.execute(upsert(SweepRow).values(first).on_conflict_do_nothing())
    due = SweepRow.stepped_at <= func.clock_timestamp() - timedelta(seconds=settings().sweep_seconds)
    taken = update(SweepRow).where(SweepRow.name == STORE, due).values(stepped_at=func.clock_timestamp())
    return tx.session.scalar(taken.returning(SweepRow.after))
