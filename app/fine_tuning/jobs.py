"""OpenAI's `/v1/fine_tuning/jobs`: this service's jobs in OpenAI's shapes."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, BackgroundTasks, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.dependencies import ReadCaller, SessionDep, TransactionDep, WriteCaller
from app.fine_tuning.schemas import Checkpoint, FineTuningCreate, FineTuningEvent, FineTuningJob
from app.fine_tuning.translation import checkpoints, fine_tuning_event, fine_tuning_job, native_spec
from app.idempotency import Made, OnceDep, creates
from app.jobs import changes, creation, service
from app.jobs.schemas import EventView, JobView, ResumeJob
from app.jobs.views import job_view
from app.pagination import After, Page, PageDep
from app.problems import responses
from core.aftermath import apply_run
from core.database import Transaction
from core.errors import Unprocessable
from core.tables import Dataset, Event, Job

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"])

EVENT_PREFIX = "ftevent-"
Listed = TypeVar("Listed", FineTuningEvent, Checkpoint)
Limit = Annotated[int, Query(ge=1, le=100, description="Objects a page.")]


@router.post("", response_model=FineTuningJob, responses=creates(200, 429))
async def create_job(caller: WriteCaller, body: FineTuningCreate, once: OnceDep) -> Response:
    """Create a job; `method` may be `supervised`, `dpo`, or this service's own `mpo`."""
    spec = native_spec(body)

    def make(tx: Transaction) -> Made:
        job = creation.create_job(tx, caller.owner, spec)
        made = _views(tx.session, [job])[0]
        return Made(made, 200, f"/v1/fine_tuning/jobs/{job.id}")

    return await once.answer(caller.owner, make)


@router.get("")
def list_jobs(caller: ReadCaller, session: SessionDep, page: PageDep) -> Page[FineTuningJob]:
    """Jobs, newest first."""
    found = service.list_jobs(session, caller.owner, page, service.JobFilter())
    return Page(
        data=_views(session, found.data),
        first_id=found.first_id,
        last_id=found.last_id,
        has_more=found.has_more,
    )


@router.get("/{job_id}", responses=responses(404))
def read_job(caller: ReadCaller, session: SessionDep, job_id: str) -> FineTuningJob:
    """One job."""
    return _views(session, [_job(session, caller.owner, job_id)])[0]


@router.post("/{job_id}/cancel", responses=responses(404, 409))
def cancel_job(caller: WriteCaller, tx: TransactionDep, job_id: str, after: BackgroundTasks) -> FineTuningJob:
    """Cancel a job; what it has finished is kept."""
    return _changed(tx, after, *changes.cancel(tx, caller.owner, job_id))


@router.post("/{job_id}/pause", responses=responses(404, 409))
def pause_job(caller: WriteCaller, tx: TransactionDep, job_id: str, after: BackgroundTasks) -> FineTuningJob:
    """Pause a job: what runs saves a checkpoint and stops."""
    return _changed(tx, after, *changes.pause(tx, caller.owner, job_id))


@router.post("/{job_id}/resume", responses=responses(404, 409))
def resume_job(caller: WriteCaller, tx: TransactionDep, job_id: str, after: BackgroundTasks) -> FineTuningJob:
    """Resume a paused job."""
    return _changed(tx, after, *changes.resume(tx, caller.owner, job_id, ResumeJob()))


@router.get("/{job_id}/events", responses=responses(404))
def list_events(
    caller: ReadCaller,
    session: SessionDep,
    job_id: str,
    limit: Limit = 20,
    after: After = None,
) -> Page[FineTuningEvent]:
    """A job's events, newest first."""
    job = service.find_job(session, caller.owner, job_id)
    statement = select(Event).where(Event.job_id == job.id)
    if after is not None:
        statement = statement.where(Event.id < _event_number(after))
    found = list(session.scalars(statement.order_by(Event.id.desc()).limit(limit + 1)))
    events = [fine_tuning_event(EventView.model_validate(e, from_attributes=True)) for e in found[:limit]]
    return _page(events, has_more=len(found) > limit)


@router.get("/{job_id}/checkpoints", responses=responses(404))
def list_checkpoints(
    caller: ReadCaller,
    session: SessionDep,
    job_id: str,
    limit: Limit = 10,
    after: After = None,
) -> Page[Checkpoint]:
    """The models that a job has made so far, newest first; each can be queried."""
    made = checkpoints(_job(session, caller.owner, job_id))
    ids = [each.id for each in made]
    if after is not None and after not in ids:
        raise Unprocessable("Should be the id of one of the job's checkpoints", loc=("query", "after"))
    rest = made[ids.index(after) + 1 :] if after is not None else made
    return _page(rest[:limit], has_more=len(rest) > limit)


def _page(data: list[Listed], *, has_more: bool) -> Page[Listed]:
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data=data, first_id=first, last_id=last, has_more=has_more)


def _job(session: Session, owner: str, job_id: str) -> JobView:
    return job_view(session, service.find_job(session, owner, job_id))


def _changed(tx: Transaction, after: BackgroundTasks, job: Job, runs: Sequence[str]) -> FineTuningJob:
    for run_id in runs:
        after.add_task(apply_run, run_id)
    return _views(tx.session, [job_view(tx.session, job)])[0]


def _views(session: Session, jobs: Sequence[JobView]) -> list[FineTuningJob]:
    ids = {job.dataset for job in jobs if job.dataset}
    statement = select(Dataset.id, Dataset.status).where(Dataset.id.in_(ids))
    states = {row.id: row.status for row in session.execute(statement)} if ids else {}
    return [fine_tuning_job(job, states.get(job.dataset or "")) for job in jobs]


def _event_number(event_id: str) -> int:
    number = event_id.removeprefix(EVENT_PREFIX)
    if not (event_id.startswith(EVENT_PREFIX) and number.isascii() and number.isdigit() and len(number) < 19):
        raise Unprocessable(f"Should be an id like {EVENT_PREFIX}…", loc=("query", "after"))
    return int(number)
