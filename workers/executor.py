"""Slots: threads that claim a run, have a child do it, and publish or fail it, until nothing is runnable."""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Condition, Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from core import queue, tallies
from core.aftermath import apply_run
from core.database import AWAY, open_transaction
from core.errors import FenceOver
from core.logs import bind
from core.settings import settings
from core.states import RunState
from core.storage import storage
from core.work_items import ClaimedRun
from workers import stage_inputs
from workers.child import run_in_child
from workers.child_protocol import (
    Checkpointed,
    ChildTask,
    Crashed,
    Done,
    Failed,
    Outcome,
    Progress,
    Report,
    Rows,
    Stopped,
    Warned,
)
from workers.failures import crash_row, failure_row, store_failed
from workers.fork_server import ForkServerGone
from workers.lease import LeaseKeeper
from workers.scratch import scratch_folder

DATABASE_RETRY_SECONDS = 1.0
FORK_SERVER_RETRY_SECONDS = 2.0
LOG_BYTES = 64_000

logger = logging.getLogger(__name__)

_bell = Condition()
_rings: dict[str, int] = {}


def wake(slot: str) -> None:
    """Somebody rang: every idle slot of this class in this process looks."""
    with _bell:
        _rings[slot] = _rings.get(slot, 0) + 1
        _bell.notify_all()


class Executor:
    """The slots of one process."""

    def __init__(self, slot: str, concurrency: int, worker_id: str) -> None:
        self._slot, self._worker_id = slot, worker_id
        self.stopping = Event()
        self._scratch = scratch_folder()
        self._threads = [
            Thread(target=self._work, name=f"{slot} slot {number}") for number in range(concurrency)
        ]

    def start(self) -> None:
        """Begin to look."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask running children to checkpoint and end, give their runs back, and wait for it."""
        self.stopping.set()
        wake(self._slot)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self.stopping.is_set():
            with _bell:
                heard = _rings.get(self._slot, 0)
            try:
                self.look()
            except SQLAlchemyError as error:
                logger.warning("the database is away: %s", type(error).__name__)
            except Exception:  # a border: a defect must not cost the process its slot
                logger.exception("slot %s", self._slot)
            self._wait_for_a_ring(heard)

    def _wait_for_a_ring(self, heard: int) -> None:
        """A ring that came while this slot looked counts too."""
        with _bell:
            _bell.wait_for(
                lambda: self.stopping.is_set() or _rings.get(self._slot, 0) != heard,
                timeout=settings().look_seconds,
            )

    def look(self) -> None:
        """Claim and perform, again and again, until nothing is runnable."""
        while not self.stopping.is_set():
            with open_transaction() as tx:
                claimed = queue.claim(tx, self._slot, self._worker_id)
            if claimed is None:
                return
            tallies.observe(tallies.CLAIM_SECONDS, _waited_seconds(claimed), slot=self._slot)
            Performance(claimed, self._scratch, self.stopping).perform()


def _waited_seconds(claimed: ClaimedRun) -> float:
    return (claimed.claimed_at - claimed.queued_at).total_seconds()


def _log_fields(claimed: ClaimedRun) -> dict[str, str | int]:
    """What every log line of this attempt carries, the child's too."""
    fields: dict[str, str | int | None] = {
        "request_id": claimed.request_id,
        "job_id": claimed.job_id,
        "run_id": claimed.id,
        "fence": claimed.fence,
        "kind": claimed.kind,
        "stage": claimed.subject_id if claimed.job_id else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


class Performance:
    """One claimed run, from claim to the end of its fence."""

    def __init__(self, claimed: ClaimedRun, scratch: Path, stopping: Event) -> None:
        self._claimed, self._stopping, self._storage = claimed, stopping, storage()
        stage_inputs.drop_older_folders(scratch, claimed.id)
        self._folder = scratch / f"{claimed.id}-{claimed.fence}"
        self._log = self._folder / "log"
        self._keeper = LeaseKeeper(claimed, self._read_log)

    def perform(self) -> None:
        """Do the work, write how it ended, and carry that to whom it concerns."""
        with bind(**_log_fields(self._claimed)):
            self._perform()

    def _perform(self) -> None:
        claimed = self._claimed
        logger.info("claimed, %.3f s after it was queued", _waited_seconds(claimed))
        try:
            with self._keeper:
                self._until_database_answers(self._tell)
                self._run()
            self._until_database_answers(self._tell)
        except FenceOver as over:
            logger.info("the fence is over: %s", over.facts.get("state"))
            self._until_database_answers(self._tell)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _tell(self) -> None:
        """Tell the jobs how the run is; recovery tells those again that could not be advanced."""
        try:
            apply_run(self._claimed.id)
        except AWAY:
            raise
        except Exception:  # a border: a job that cannot be advanced must not cost the others this run
            logger.exception("run %s: not all jobs could be told", self._claimed.id)

    def _run(self) -> None:
        started = time.monotonic()
        try:
            task = stage_inputs.fetch(self._claimed, self._folder, self._storage)
            task = replace(task, log_fields=_log_fields(self._claimed))
            outcome = self._child(task)
            if isinstance(outcome, Done):
                self._publish(task, outcome, time.monotonic() - started)
                return
        except OSError as error:
            outcome = store_failed(error)
        except ForkServerGone as error:
            logger.warning("no child could be started: %s", error)
            self._stopping.wait(FORK_SERVER_RETRY_SECONDS)
            outcome = Stopped()
        except stage_inputs.OutputMissing as error:
            outcome = Failed("internal_error", str(error), retryable=False)
        except ValueError as error:
            # A row names no location.
            logger.exception("the work cannot be made ready")
            outcome = Failed("internal_error", f"{type(error).__name__}: {error}", retryable=True)
        self._settle(outcome)

    def _child(self, task: ChildTask) -> Outcome | None:
        def stopped() -> bool:
            return self._stopping.is_set() or self._is_paused()

        if self._is_aborted() or stopped():
            # Known since the inputs were fetched, which may take long.
            return None if self._is_aborted() else Stopped()
        outcome = run_in_child(task, self._hear, self._is_aborted, stopped)
        logger.info("child ended: %s", type(outcome).__name__)
        if isinstance(outcome, Crashed):
            tallies.count(tallies.CRASHES, kind=self._claimed.kind)
        return outcome

    def _is_paused(self) -> bool:
        return self._keeper.lost.is_set() and self._keeper.lost_to == RunState.PAUSED

    def _is_aborted(self) -> bool:
        """The run is another attempt's, or over: what this one does counts for nothing."""
        return self._keeper.lost.is_set() and not self._is_paused()

    def _hear(self, report: Report) -> None:
        if isinstance(report, Checkpointed):
            self._keep_checkpoint(report)
        elif isinstance(report, Progress | Warned | Rows):
            self._keeper.note(report)

    def _keep_checkpoint(self, report: Checkpointed) -> None:
        if self._is_aborted():
            # No row would ever name it. A child may come to a checkpoint before it is ended: where its fork
            # server had to be started anew, the run was cancelled before the child began.
            return
        location = stage_inputs.store_checkpoint(self._claimed, report.folder, report.step, self._storage)

        def record() -> None:
            with open_transaction() as tx:
                replaced = queue.record_checkpoint(tx, self._claimed, location, report.step)
            if replaced is not None:
                self._drop_checkpoint(replaced)

        try:
            self._until_database_answers(record)
        except FenceOver:
            # The keeper learns it too and ends the child; a late attempt deletes nothing.
            logger.info("a checkpoint came too late")

    def _drop_checkpoint(self, location: str) -> None:
        try:
            self._storage.delete(location)
        except OSError as error:
            # A run that has just made progress is not ended over what the sweep takes anyway.
            logger.warning("%s is left to the sweep: %s", location, error)

    def _publish(self, task: ChildTask, done: Done, wall_seconds: float) -> None:
        artifacts, summary = stage_inputs.store(self._claimed, task, done, wall_seconds, self._storage)

        def publish() -> None:
            self._keeper.flush()
            with open_transaction() as tx:
                if not queue.was_published(tx, self._claimed):
                    queue.publish(tx, self._claimed, artifacts, summary)

        self._until_database_answers(publish)
        tallies.observe(tallies.STAGE_SECONDS, wall_seconds, kind=self._claimed.kind)
        logger.info("published after %.1f s", wall_seconds)

    def _settle(self, outcome: Failed | Stopped | Crashed | None) -> None:
        if outcome is None or self._keeper.lost.is_set():
            return

        def settle() -> None:
            with open_transaction() as tx:
                if isinstance(outcome, Stopped):
                    queue.give_back(tx, self._claimed)
                elif isinstance(outcome, Crashed):
                    queue.crash(tx, self._claimed, crash_row(outcome, self._read_log()))
                elif outcome.retryable:
                    queue.crash(tx, self._claimed, failure_row(outcome, self._read_log()))
                else:
                    queue.fail(tx, self._claimed, failure_row(outcome, self._read_log()))

        self._until_database_answers(settle)

    def _until_database_answers(self, write: Callable[[], None]) -> None:
        """A result is not thrown away because the database is away for a while."""
        while True:
            try:
                write()
            except AWAY as error:
                logger.warning("the database is away: %s", type(error).__name__)
                self._stopping.wait(DATABASE_RETRY_SECONDS)
                if self._stopping.is_set():
                    raise
            else:
                return

    def _read_log(self) -> str:
        if not self._log.is_file():
            return ""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", "replace").replace("\0", "")
