"""Marks: by what it is told that an object has changed, read for all who ask at one moment in one statement.

A mark is made of the versions of every row that the object's view is made from, so that an answer of "not
modified" reads no more than these. Requests of one moment share a statement: while one is under way, who asks
waits for the next, so that what was committed before a request is seen by it.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.jobs.places import queue_places
from core.database import open_session
from core.ids import is_id

PATIENCE_SECONDS = 0.25
"""Behind a statement that takes longer nobody waits: the next one goes out beside it."""

MarkedNoun = Literal["dataset", "job", "run", "comparison", "evaluation"]
Watch = tuple[MarkedNoun, str]
"""What is looked at: a noun, and the id of one."""

# A stage has no version: the transaction that wrote its row last serves as one. A run's rises with all
# that is shown of it (core/queue.py leaves it alone where a lease is renewed).
_MARKS: Mapping[str, str] = {
    "job": """
SELECT 'job', job.id, job.owner, job.status IN ('succeeded', 'failed', 'cancelled'),
       concat_ws('/', job.version, shown.rows), shown.queued
FROM jobs AS job CROSS JOIN LATERAL (
    SELECT string_agg(concat_ws('-', CAST(stage.xmin AS text), run.version), '.' ORDER BY stage.position),
           array_agg(run.id) FILTER (WHERE stage.status = 'queued' AND run.state = 'queued')
    FROM stages AS stage LEFT JOIN runs AS run ON run.id = stage.run_id
    WHERE stage.job_id = job.id
) AS shown (rows, queued)
WHERE job.id = ANY(:job) AND job.deleted_at IS NULL""",
    "dataset": """
SELECT 'dataset', id, owner, status IN ('ready', 'invalid'), CAST(version AS text), CAST(NULL AS text[])
FROM datasets WHERE id = ANY(:dataset) AND deleted_at IS NULL""",
    "comparison": """
SELECT 'comparison', id, owner, status IN ('succeeded', 'failed', 'cancelled'), CAST(version AS text),
       CAST(NULL AS text[])
FROM comparisons WHERE id = ANY(:comparison) AND deleted_at IS NULL""",
    "evaluation": """
SELECT 'evaluation', id, owner, status IN ('succeeded', 'failed', 'cancelled'), CAST(version AS text),
       CAST(NULL AS text[])
FROM evaluations WHERE id = ANY(:evaluation) AND deleted_at IS NULL""",
    # It shows the other attempts at its key, and those of its artifacts that are kept.
    "run": """
SELECT 'run', run.id, run.owner, run.state IN ('succeeded', 'failed', 'cancelled'),
       concat_ws('/', run.version, (
           SELECT string_agg(concat_ws('-', other.id, other.version), '.' ORDER BY other.id)
           FROM runs AS other WHERE other.owner = run.owner AND other.key = run.key
       ), (
           SELECT string_agg(artifact.id, '.' ORDER BY artifact.id)
           FROM artifacts AS artifact WHERE artifact.run_id = run.id AND artifact.deleted_at IS NULL
       )), CAST(NULL AS text[])
FROM runs AS run WHERE run.id = ANY(:run)""",
}


@dataclass(frozen=True)
class Mark:
    """An object at one moment. finished: it changes no more by itself.

    changes: another text whenever anything else in it has changed than places. places: of the queued runs
    that a job waits for, in their queues; a move there alone ends nobody's wait.
    """

    owner: str
    finished: bool
    changes: str
    places: Mapping[str, int] = field(default_factory=dict)


def read_marks(session: Session, watched: Collection[Watch], *, places: bool = True) -> dict[Watch, Mark]:
    """The marks of what there is of these. places: whether to look for them."""
    ids: dict[str, list[str]] = {}
    for noun, id_ in watched:
        ids.setdefault(noun, []).append(id_)
    rows = session.connection().execute(_statement(tuple(sorted(ids))), ids).all() if ids else []
    queued = [run_id for row in rows for run_id in row[5] or ()] if places else []
    found = queue_places(session, queued)
    return {
        (noun, id_): Mark(
            owner, finished, changes, {run_id: found[run_id] for run_id in runs or () if run_id in found}
        )
        for noun, id_, owner, finished, changes, runs in rows
    }


@lru_cache
def _statement(nouns: tuple[str, ...]) -> TextClause:
    return text(" UNION ALL ".join(_MARKS[noun] for noun in nouns))


@dataclass(frozen=True, eq=False)
class _Batch:
    watched: set[Watch]
    marks: "asyncio.Task[dict[Watch, Mark]]"


class Marks:
    """This process's reader: those who ask while a statement is under way are all served by the next."""

    def __init__(self) -> None:
        self._open: _Batch | None = None
        self._sent: asyncio.Task[dict[Watch, Mark]] | None = None

    async def read(self, watch: Watch) -> Mark | None:
        """The mark of one object; None where there is none of that id. Raises SQLAlchemyError."""
        if not is_id(*watch):
            return None
        if self._open is None or self._open.marks.done():
            watched: set[Watch] = set()
            self._open = _Batch(watched, asyncio.create_task(self._read(watched)))
        self._open.watched.add(watch)
        # Shielded: who is cancelled leaves the others their answer.
        return (await asyncio.shield(self._open.marks)).get(watch)

    async def _read(self, watched: set[Watch]) -> dict[Watch, Mark]:
        if self._sent is not None:
            await asyncio.wait({self._sent}, timeout=PATIENCE_SECONDS)
        self._sent, self._open = asyncio.current_task(), None
        return await run_in_threadpool(_read, watched)


def _read(watched: Collection[Watch]) -> dict[Watch, Mark]:
    with open_session() as session:
        return read_marks(session, watched)
