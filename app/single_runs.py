"""Comparisons and evaluations: one run each, made, waited for and cancelled alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy import func
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.idempotency import REPLAYED, Made, Once
from app.ownership import find_owned
from app.streams import Poll, Subject
from core import queue
from core.database import Transaction, open_transaction
from core.errors import Conflict
from core.states import FINISHED_JOB, JobState
from core.tables import Comparison, Evaluation

Single = TypeVar("Single", Comparison, Evaluation)


@dataclass(frozen=True)
class SingleRuns:
    """A noun over HTTP. read: makes its view from a session, an owner and an id; raises NotFound."""

    noun: Literal["comparison", "evaluation"]
    view: type[BaseModel]
    read: Callable[[Session, str, str], BaseModel]

    async def create(
        self, once: Once, poll: Poll, owner: str, create: Callable[[Transaction], str]
    ) -> Response:
        """Make one, whose id `create` gives; with `wait`, answer once it has finished or the time is up."""

        def make(tx: Transaction) -> Made:
            made = create(tx)
            return Made(self.read(tx.session, owner, made), 202, f"/v1/{self.noun}s/{made}")

        answer = await once.answer(owner, make)
        if not poll.wait_seconds:
            return answer
        # A replay waits as the first request did, and tells how far the same one is.
        headers = {name: answer.headers[name] for name in ("Location", REPLAYED) if name in answer.headers}
        made = headers["Location"].rpartition("/")[2]
        return await self.answer(poll, owner, made, status=202, headers=headers, until_finished=True)

    async def answer(self, poll: Poll, owner: str, id_: str, **how: Any) -> Response:
        """One of them, as `Poll.answer` gives it; `how` is handed on."""
        subject = Subject(self.noun, id_, owner, self.view)
        return await poll.answer(subject, lambda session, _: self.read(session, owner, id_), **how)

    async def cancel(
        self, poll: Poll, owner: str, id_: str, cancel: Callable[[Transaction, str, str], None]
    ) -> Response:
        """End one by its use case, and answer with it."""

        def committed() -> None:
            with open_transaction() as tx:
                cancel(tx, owner, id_)

        await run_in_threadpool(committed)
        return await self.answer(poll, owner, id_)


def cancel_with_run(
    tx: Transaction, table: type[Single], owner: str, id_: str, finished: type[Conflict]
) -> None:
    """End one of them and its run. Raises NotFound, `finished`; a second time nothing happens."""
    found = find_owned(tx.session, table, owner, id_)
    # The run's row before its subject's: whoever records rows, or carries a state over, takes them so.
    ended = found.run_id is not None and queue.cancel(tx, found.run_id)
    held = tx.session.get_one(table, found.id, with_for_update=True, populate_existing=True)
    if held.status == JobState.CANCELLED:
        return
    if not ended or held.status in FINISHED_JOB:
        raise finished(**{table.__name__.lower(): held.id}, status=held.status)
    held.status, held.finished_at = JobState.CANCELLED, func.clock_timestamp()
