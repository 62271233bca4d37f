"""LeaseKeeper: renews a claim on a thread of its own, and writes what the run reports, in batches."""

import logging
import math
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from threading import Event, Lock, Thread
from typing import Any

from sqlalchemy.exc import DataError, SQLAlchemyError

from core import queue
from core.aftermath import report_progress
from core.comparing import record_rows
from core.database import open_transaction
from core.errors import FenceOver
from core.settings import settings
from core.states import RunState
from core.work_items import ClaimedRun
from workers.child_protocol import Progress, Rows, Warned

FLUSH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """From claim until the publication has committed. `lost` is set once a row says that the fence is over.

    An outage of the database loses nothing: the child goes on, and the next renewal that arrives counts.
    """

    def __init__(self, claimed: ClaimedRun, read_log: Callable[[], str]) -> None:
        self._claimed, self._read_log = claimed, read_log
        self.lost, self.lost_to = Event(), ""
        self._ended, self._lock, self._flushing = Event(), Lock(), Lock()
        self._progress: Progress | None = None
        self._metrics: dict[int, dict[str, float]] = {}
        self._warnings: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._begun: tuple[float, int] | None = None

    def __enter__(self) -> "LeaseKeeper":
        # In the context of who enters: log lines of this thread name the same run.
        work = partial(copy_context().run, self._keep)
        self._thread = Thread(target=work, name=f"lease {self._claimed.id}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def note(self, report: Progress | Warned | Rows) -> None:
        """Remember what the child said until the next flush."""
        with self._lock:
            if isinstance(report, Warned):
                self._warnings.append(report.message)
            elif isinstance(report, Rows):
                self._rows.extend(report.rows)
            else:
                self._begun = self._begun or (time.monotonic(), report.step)
                self._progress = report
                # JSON knows neither NaN nor infinity: one such value must not keep back all others.
                finite = {name: value for name, value in report.metrics.items() if math.isfinite(value)}
                if finite:
                    self._metrics[report.step] = finite

    def flush(self) -> None:
        """Write what was noted; raises FenceOver, SQLAlchemyError. What could not be written is kept.

        What the database refuses for what it says is dropped: it would be refused again, and keep the result
        from being published. Rows of a comparison are a result themselves, and never dropped.
        """
        # A publisher's flush waits for one that is under way: after it, everything is written.
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            progress, metrics, rows = self._progress, self._metrics, self._rows
            warnings = self._warnings
            self._progress, self._metrics, self._warnings, self._rows = None, {}, [], []
        if progress is None and not rows and not warnings:
            return
        try:
            self._write(progress, metrics, rows, warnings)
        except SQLAlchemyError as error:
            if isinstance(error, DataError) and not rows:
                logger.exception("run %s: a report is refused, and dropped", self._claimed.id)
                return
            with self._lock:
                self._progress = self._progress or progress
                self._metrics = {**metrics, **self._metrics}
                self._warnings, self._rows = warnings + self._warnings, rows + self._rows
            raise

    def _write(
        self,
        progress: Progress | None,
        metrics: dict[int, dict[str, float]],
        rows: list[dict[str, Any]],
        warnings: list[str],
    ) -> None:
        with open_transaction() as tx:
            if progress is not None:
                queue.record_progress(tx, self._claimed, self._shown(progress), metrics, self._read_log())
            else:
                queue.renew(tx, self._claimed)
            if rows:
                record_rows(tx, self._claimed.subject_id, rows)
        report_progress(self._claimed.id, warnings)

    def _shown(self, progress: Progress) -> dict[str, Any]:
        started, first = self._begun or (time.monotonic(), progress.step)
        done, total = progress.step, max(progress.total_steps, progress.step, 1)
        pace = (time.monotonic() - started) / (done - first) if done > first else None
        return {
            "step": done,
            "total_steps": total,
            "fraction": round(done / total, 4),
            "eta_seconds": round(pace * (total - done), 1) if pace is not None else None,
        }

    def _keep(self) -> None:
        renew_at = time.monotonic() + settings().renew_seconds
        while not self._ended.wait(min(FLUSH_SECONDS, settings().renew_seconds)):
            try:
                if time.monotonic() >= renew_at:
                    with open_transaction() as tx:
                        queue.renew(tx, self._claimed)
                    renew_at = time.monotonic() + settings().renew_seconds
                self.flush()
            except FenceOver as over:
                self.lost_to = str(over.facts.get("state") or RunState.CANCELLED)
                self.lost.set()
                if self.lost_to != RunState.PAUSED:
                    return
                # A paused run may still be cancelled: the next renewal tells.
                renew_at = 0.0
            except SQLAlchemyError as error:
                logger.warning("run %s: the database is away: %s", self._claimed.id, type(error).__name__)
            except Exception:  # a border: a defect in reporting must not cost a healthy run its lease
                logger.exception("run %s", self._claimed.id)
