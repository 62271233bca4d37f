"""Submissions that wait at the same moment are made in one transaction.

A statement costs much the same for one job as for ten, and a transaction its round trips and its commit. So
while one transaction is under way, what is submitted waits, and goes into the next one together; where nobody
else submits, nothing waits. Those with an Idempotency-Key leave their answer behind in the same transaction.
Only jobs of which nothing is done or under way yet are made so: what takes part in other jobs' work holds
their rows, and many such jobs in one transaction would wait for each other.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from app.jobs.blueprints import asked_by
from app.jobs.creation import dataset_states, new_job
from app.jobs.fitting import refuse_what_does_not_fit
from app.jobs.insertion import NewJob, insert_jobs
from app.jobs.planning import FoundLeaves, Plan, plan_spec
from app.jobs.room import rooms
from app.jobs.schemas import CreateJob
from app.jobs.views import new_job_views
from core import queue
from core.advance import first_runs, start_job
from core.database import AWAY, Transaction, open_transaction
from core.errors import ServiceError
from core.idempotency import KeptAnswer, Keyed, keep_answers, take_keys
from core.known_work import KnownWork, Look, look_for
from core.logs import bind
from core.work_lookup import have_artifacts

MOST_TOGETHER = 32
REMEMBERED = 10_000


PATH = "/v1/jobs"
ACCEPTED = 202
Outcome = KeptAnswer | ServiceError | None
"""None: the job has to be made by itself."""


@dataclass(frozen=True, eq=False)
class Submission:
    """A job that is asked for, and by which request."""

    owner: str
    spec: CreateJob
    request_id: str | None = None
    keyed: Keyed | None = None

    def work(self) -> int:
        """The same for two that ask for the same work."""
        return hash((self.owner, asked_by(self.spec), self.spec.seed))


@dataclass(eq=False)
class _Waiting:
    submission: Submission
    answer: "asyncio.Future[Outcome]"


class Submissions:
    """One event loop's."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._known: OrderedDict[int, None] = OrderedDict()

    async def create(self, submission: Submission) -> KeptAnswer | None:
        """Make a job together with others; None where it has to be made by itself. Raises what refuses it."""
        loop = asyncio.get_running_loop()
        if (work := submission.work()) in self._known:
            return None
        self._remember(work)
        waiting = _Waiting(submission, loop.create_future())
        self._waiting.append(waiting)
        if self._worker is None:
            # In a context of its own: it works for many requests, and none of their ids is on its lines.
            self._worker = loop.create_task(self._work(), context=Context())
        outcome = await waiting.answer
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    def _remember(self, work: int) -> None:
        """What is asked for once more is under way, or done: there is no use in looking whether it is."""
        self._known[work] = None
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def _work(self) -> None:
        try:
            while self._waiting:
                owner = self._waiting[0].submission.owner
                taken = [each for each in self._waiting if each.submission.owner == owner][:MOST_TOGETHER]
                self._waiting = [each for each in self._waiting if each not in taken]
                await self._answer(taken)
        finally:
            self._worker = None

    async def _answer(self, taken: Sequence[_Waiting]) -> None:
        try:
            outcomes = await run_in_threadpool(create_together, [each.submission for each in taken])
        except Exception as error:  # a border: each is tried by itself, and tells what is wrong
            if _has_not_answered(error):
                # Each by itself would wait for the database once more; and what was sent may be done.
                _fail(taken, error)
            else:
                _settle(taken, [None] * len(taken))
        else:
            _settle(taken, outcomes)


def _settle(taken: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
    for waiting, outcome in zip(taken, outcomes, strict=True):
        if not waiting.answer.done():  # whoever asked may be gone
            waiting.answer.set_result(outcome)


def _fail(taken: Sequence[_Waiting], error: Exception) -> None:
    for waiting in taken:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def _has_not_answered(error: Exception) -> bool:
    """Whether the database is away, rather than that it has said what is wrong."""
    return isinstance(error, AWAY) and getattr(error.__cause__, "sqlstate", None) is None


class NotTogether(Exception):
    """Something came between: each is made by itself."""


def create_together(taken: Sequence[Submission]) -> list[Outcome]:
    """Make jobs of one owner in one transaction; raises NotTogether where each has to be made by itself."""
    outcomes: dict[int, Outcome] = {}
    with open_transaction() as tx:
        owner, asked = taken[0].owner, dict(enumerate(taken))
        keys = {place: s.keyed for place, s in asked.items() if s.keyed is not None}
        free = take_keys(tx, owner, PATH, list(keys.values())) if keys else set()
        for place, keyed in keys.items():
            if keyed.place.key not in free:
                del asked[place]
        made = _make(tx, owner, asked, outcomes)
        answers = {keyed.place.key: made[place] for place, keyed in keys.items() if place in made}
        keep_answers(tx, owner, PATH, free, answers)
    return [made.get(place, outcomes.get(place)) for place in range(len(taken))]


def _make(
    tx: Transaction, owner: str, asked: dict[int, Submission], outcomes: dict[int, Outcome]
) -> dict[int, KeptAnswer]:
    """The answers of those that are made, by place; `outcomes` is told which are refused."""
    plans = _plans(tx, owner, asked, outcomes)
    look = look_for(tx, owner, [key for plan in plans.values() for key in plan.keys.values()])
    plans = _untouched(plans, look)
    new: dict[int, NewJob] = {}
    for place, plan in plans.items():
        with bind(request_id=asked[place].request_id):
            new[place] = new_job(tx, owner, asked[place].spec, plan, look.moment)
    return _start(tx, owner, new, plans) if new else {}


def _plans(
    tx: Transaction, owner: str, asked: dict[int, Submission], outcomes: dict[int, Outcome]
) -> dict[int, Plan]:
    """By place; those that read a trained model hold its job's row, and are left out."""
    plans: dict[int, Plan] = {}
    found: FoundLeaves = {}
    for place, submission in asked.items():
        try:
            plan = plan_spec(tx, owner, submission.spec, found)
            refuse_what_does_not_fit(tx, owner, submission.spec, plan)
            if not plan.leaves.artifacts:
                rooms().enter(tx, owner, uncounted=len(plans))
                plans[place] = plan
        except ServiceError as error:
            outcomes[place] = error
    return plans


def _untouched(plans: dict[int, Plan], look: Look) -> dict[int, Plan]:
    """Those of whose keys there is nothing yet, nor in a plan before them."""
    seen = set(look.touched)
    untouched = {}
    for place, plan in plans.items():
        keys = set(plan.keys.values())
        if not keys & seen:
            untouched[place] = plan
        seen |= keys
    return untouched


def _start(
    tx: Transaction, owner: str, new: dict[int, NewJob], plans: dict[int, Plan]
) -> dict[int, KeptAnswer]:
    datasets = {place: dataset_states(plan) for place, plan in plans.items()}
    runs = {p: first_runs(tx, each.job, each.stages, datasets[p]) for p, each in new.items()}
    asked = [run for of_job in runs.values() for run in of_job]
    if asked:
        queued = queue.enqueue_all(tx, asked)
        # What has come since the look: the key's run is under way, or it has been published already.
        if len(queued) < len(asked) or have_artifacts(tx, owner, [run.key or "" for run in asked]):
            raise NotTogether
    known = KnownWork(queued={run.key or "": run.id or "" for run in asked})
    for place, each in new.items():
        known.untouched |= {stage.key for stage in each.stages}
        start_job(tx, each.job, each.stages, datasets[place], known)
    insert_jobs(tx, list(new.values()))
    views = new_job_views(tx.session, [(each.job, each.stages) for each in new.values()], known.runs)
    return {
        place: KeptAnswer(ACCEPTED, {"Location": f"{PATH}/{view.id}"}, view.model_dump_json())
        for place, view in zip(new, views, strict=True)
    }
