"""The sweep: frees what lies in the store and no row names, once nobody can name or read it any more.

Of a run's prefix runs/{run}/{fence}/ each output folder and each checkpoint is freed by itself. It must be:
of a fence that is over (a later claim, or the run's end); named by no artifact, no dataset, no checkpoint of
its key's runs; not among the inputs of a run that has not ended. What a deleted artifact named stays for a
grace beyond its deletion, for who had begun to read it; what nothing ever named, beyond its last write.
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Text, cast, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, JSONPATH
from sqlalchemy.orm import Session

from core.broken_uploads import abort_older
from core.database import open_session
from core.states import TERMINAL, RunState
from core.storage import Storage
from core.tables import Artifact, Dataset, Run

RUNS, UPLOADS, PROBES, CHECKPOINTS = "runs", "uploads", "probes", "checkpoints"

logger = logging.getLogger(__name__)


@dataclass
class Freed:
    """What a sweep has done. waiting: what will be free once its grace is over."""

    places: int = 0
    files: int = 0
    bytes: int = 0
    waiting: int = 0
    failed: int = 0

    def __str__(self) -> str:
        said = f"freed {self.places} places ({self.files} files, {self.bytes} bytes)"
        said += f"; {self.waiting} wait for their grace to end" if self.waiting else ""
        return said + (f"; {self.failed} could not be removed, see the log" if self.failed else "")


@dataclass
class Sweep:
    """One sweep of one store. grace: of what no row will ever name again; its counts are in `freed`.

    unnamed_grace: of uploads, whose transaction may be still to come: nobody can tell them from dead ones.
    """

    storage: Storage
    grace: timedelta
    unnamed_grace: timedelta
    freed: Freed = field(default_factory=Freed)

    def runs(self, run_ids: Collection[str]) -> None:
        """Free what these runs have left. A run without a row is another deployment's, and left alone."""
        with open_session() as session:
            runs = session.execute(
                select(Run.id, Run.owner, Run.key, Run.state, Run.fence).where(Run.id.in_(run_ids))
            ).all()
            named = self._named(session, [run.id for run in runs])
        for run in runs:
            try:
                self._free_run(run.id, None if run.state in TERMINAL else run.fence, named)
            except OSError:
                # Else no step would ever come past this one.
                logger.exception("sweep: %s", run.id)
                self.freed.failed += 1

    def _free_run(self, run_id: str, current: int | None, named: Collection[str]) -> None:
        """current: the fence that is not over; None where the run has ended."""
        for fence in self._fences(run_id):
            if current is not None and fence >= current:
                continue
            prefix = f"{RUNS}/{run_id}/{fence}"
            self._free_unread([unit for unit in self._units(prefix) if not _holds(named, unit)])
            self.storage.drop_empty(f"{prefix}/{CHECKPOINTS}")
            self.storage.drop_empty(prefix)
        if current is None:
            self.storage.drop_empty(f"{RUNS}/{run_id}")

    def uploads(self) -> None:
        """Free deleted datasets' bytes, uploads that broke off or were refused, and probes."""
        names = self.storage.names(UPLOADS)
        first_name = func.split_part(Dataset.location, "/", 2)
        with open_session() as session:
            found = session.execute(select(first_name, Dataset.deleted_at).where(first_name.in_(names)))
            owners: dict[str, datetime | None] = {row[0]: row[1] for row in found}
        now = datetime.now(UTC)
        dead = [n for n in names if n in owners and (at := owners[n]) is not None and at <= now - self.grace]
        self._free_unread([f"{UPLOADS}/{name}" for name in dead])
        for place, left in ((UPLOADS, [n for n in names if n not in owners]), (PROBES, None)):
            for name in left if left is not None else self.storage.names(place):
                self._free(f"{place}/{name}", self.unnamed_grace)
        self.freed.places += abort_older(self.storage, now - self.unnamed_grace)

    def _fences(self, run_id: str) -> list[int]:
        return [int(name) for name in self.storage.names(f"{RUNS}/{run_id}") if name.isdecimal()]

    def _units(self, prefix: str) -> Iterator[str]:
        for name in self.storage.names(prefix):
            if name == CHECKPOINTS:
                yield from (f"{prefix}/{name}/{step}" for step in self.storage.names(f"{prefix}/{name}"))
            else:
                yield f"{prefix}/{name}"

    def _named(self, session: Session, run_ids: Collection[str]) -> set[str]:
        """Places of these runs that rows name, and what was deleted less than the grace ago."""
        recent = Artifact.deleted_at > func.clock_timestamp() - self.grace
        kept = Artifact.run_id.in_(run_ids), or_(Artifact.deleted_at.is_(None), recent)
        named = set(session.scalars(select(Artifact.location).where(*kept)))
        rows = Dataset.run_id.in_(run_ids), Dataset.deleted_at.is_(None), Dataset.rows_location.is_not(None)
        named |= {
            location for location in session.scalars(select(Dataset.rows_location).where(*rows)) if location
        }
        keys = select(Run.owner, Run.key).where(Run.id.in_(run_ids), Run.key.is_not(None))
        # One after the other: an OR of both would read the whole table.
        for of_them in (Run.id.in_(run_ids), tuple_(Run.owner, Run.key).in_(keys)):
            location = Run.checkpoint["location"].astext
            named |= set(session.scalars(select(location).where(Run.checkpoint.is_not(None), of_them)))
        return named

    def _free_unread(self, places: Collection[str]) -> None:
        """Free places that no row names, but for what a run reads that has not ended."""
        if not places:
            return
        with open_session() as session:
            path = cast("$.*[*].location", JSONPATH)
            read = select(func.jsonb_path_query(Run.inputs, path).op("#>>")(cast([], ARRAY(Text))))
            live = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)
            inputs = set(session.scalars(read.where(Run.state.in_(live))))
        for place in places:
            if _holds(inputs, place):
                self.freed.waiting += 1
            else:
                self._free(place, self.grace)

    def _free(self, place: str, grace: timedelta) -> None:
        try:
            entries = self.storage.entries(place)
            newest = max((entry.modified for entry in entries), default=datetime.min.replace(tzinfo=UTC))
            # No grace is none: the store's clock may be ahead of ours.
            if grace and newest > datetime.now(UTC) - grace:
                self.freed.waiting += 1
                return
            self.storage.delete(place)
        except OSError:
            logger.exception("sweep: %s", place)
            self.freed.failed += 1
            return
        logger.info("sweep: freed %s", place)
        self.freed.places += 1
        self.freed.files += len(entries)
        self.freed.bytes += sum(entry.bytes for entry in entries)


def _holds(named: Collection[str], place: str) -> bool:
    """Whether one of the names is the place, lies in it, or holds it."""
    return any(n == place or n.startswith(f"{place}/") or place.startswith(f"{n}/") for n in named)
