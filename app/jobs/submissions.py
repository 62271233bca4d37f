"""Submissions that wait at the same moment are made in one transaction.

A statement costs much the same for one job as for ten, and a transaction its round trips and its commit. So
while one transaction is under way, what is submitted waits, and goes into the next one together; where nobody
else submits, nothing waits. Those with an Idempotency-Key leave their answer behind in the same transaction.
Only jobs of which nothing is done or under way yet are made so: what takes part in other jobs' work holds
their rows, and many such jobs in one transaction would wait for each other.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from app.jobs.blueprints import asked_by
from app.jobs.creation import dataset_states, new_job
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


@dataclass
class Submission:
    """What somebody waits for. work: the same for two that ask for the same work."""

    owner: str
    spec: CreateJob
    request_id: str | None
    keyed: Keyed | None
    answer: "asyncio.Future[Outcome]"
    work: Hashable = field(init=False)

    def __post_init__(self) -> None:
        self.work = self.owner, asked_by(self.spec), self.spec.seed


class Submissions:
    """One event loop's."""

    def __init__(self) -> None:
        self._waiting: list[Submission] = []
        self._worker: asyncio.Task[None] | None = None
        self._known: OrderedDict[Hashable, None] = OrderedDict()

    async def create(
        self, owner: str, spec: CreateJob, request_id: str | None, keyed: Keyed | None = None
    ) -> KeptAnswer | None:
        """Make a job together with others; None where it has to be made by itself. Raises what refuses it."""
        loop = asyncio.get_running_loop()
        submission = Submission(owner, spec, request_id, keyed, loop.create_future())
        if submission.work in self._known:
            return None
        self._remember(submission.work)
        self._waiting.append(submission)
        if self._worker is None:
            # In a context of its own: it works for many requests, and none of their ids is on its lines.
            self._worker = loop.create_task(self._work(), context=Context())
        outcome = await submission.answer
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    def _remember(self, work: Hashable) -> None:
        """What is asked for once more is under way, or done: there is no use in looking whether it is."""
        self._known[work] = None
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def _work(self) -> None:
        try:
            while self._waiting:
                owner = self._waiting[0].owner
                taken = [s for s in self._waiting if s.owner == owner][:MOST_TOGETHER]
                self._waiting = [s for s in self._waiting if s not in taken]
                await self._answer(taken)
        finally:
            self._worker = None

    async def _answer(self, taken: Sequence[Submission]) -> None:
        try:
            outcomes = await run_in_threadpool(_create_together, taken)
        except Exception as error:  # a border: each is tried by itself, and tells what is wrong
            if _has_not_answered(error):
                # Each by itself would wait for the database once more; and what was sent may be done.
                _fail(taken, error)
            else:
                _settle(taken, [None] * len(taken))
        else:
            _settle(taken, outcomes)


def _settle(taken: Sequence[Submission], outcomes: Sequence[Outcome]) -> None:
    for submission, outcome in zip(taken, outcomes, strict=True):
        if not submission.answer.done():  # whoever asked may be gone
            submission.answer.set_result(outcome)


def _fail(taken: Sequence[Submission], error: Exception) -> None:
    for submission in taken:
        if not submission.answer.done():
            submission.answer.set_exception(error)


def _has_not_answered(error: Exception) -> bool:
    """Whether the database is away, rather than that it has said what is wrong."""
    return isinstance(error, AWAY) and getattr(error.__cause__, "sqlstate", None) is None


class _NotTogether(Exception):
    """Something came between: each is made by itself."""


def _create_together(taken: Sequence[Submission]) -> list[Outcome]:
    """One transaction for all of one owner."""
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
            raise _NotTogether
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
