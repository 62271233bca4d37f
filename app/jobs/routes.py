"""Jobs over HTTP."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.dependencies import ReadCaller, SessionDep, TransactionDep, WriteCaller
from app.event_streams import MEDIA_TYPE, EventStream, Place, wants_stream
from app.idempotency import Made, OnceDep, creates
from app.jobs import changes, creation, metrics, report, service
from app.jobs.dry_run import plan_job
from app.jobs.schemas import CreateJob, DryRunView, EventPage, JobView, MetricList, ResumeJob
from app.jobs.submissions import Submission, Submissions
from app.jobs.views import job_view
from app.listing import answer_page
from app.pagination import Page, PageDep
from app.problems import responses
from app.streams import POLLED, PollDep, Subject
from app.wire import Deleted
from core.aftermath import apply_run
from core.database import Transaction, open_transaction
from core.idempotency import Keyed
from core.states import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

DryRun = Annotated[bool, Query(description="Only say what the job would do.")]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        lt=2**63,
        description="Id of the last event that was received; browsers send it when they connect again.",
    ),
]
AS_STREAM: dict[str, Any] = {
    "description": "Events",
    "content": {MEDIA_TYPE: {"schema": {"type": "string", "description": "`data` of each is an event"}}},
}
Points = Annotated[
    int,
    Query(
        ge=1,
        le=10_000,
        description="Steps of a metric at most; its last, first, largest and smallest are among them.",
    ),
]
Names = Annotated[list[str] | None, Query(description="Metrics to give; all where none is named.")]
Label = Annotated[list[str] | None, Query(description="`name:value`; several must all hold.")]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={200: {"model": DryRunView, "description": "Dry run"}, **creates(202, 429)},
)
async def create_job(
    request: Request, caller: WriteCaller, spec: CreateJob, once: OnceDep, dry_run: DryRun = False
) -> Response:
    """Create a job: the method is expanded to stages, and whatever is ready starts.

    With `dry_run` nothing is created; each stage says its key and whether its result is there already.
    """
    if dry_run:
        return await run_in_threadpool(_plan, caller.owner, spec)

    def make(tx: Transaction) -> Made:
        job = creation.create_job(tx, caller.owner, spec)
        return Made(job, 202, f"/v1/jobs/{job.id}")

    async def together(keyed: Keyed | None) -> Response | None:
        submissions: Submissions = request.app.state.submissions
        made = await submissions.create(Submission(caller.owner, spec, request.state.request_id, keyed))
        if made is None:
            return None
        return Response(made.body, made.status, made.headers, media_type="application/json")

    return await once.answer(caller.owner, make, together=together)


def _plan(owner: str, spec: CreateJob) -> Response:
    with open_transaction() as tx:
        planned = plan_job(tx, owner, spec)
    return Response(planned.model_dump_json(), media_type="application/json")


@router.get("", response_model=Page[JobView])
async def list_jobs(
    request: Request,
    caller: ReadCaller,
    page: PageDep,
    status: JobState | None = None,
    method: str | None = None,
    dataset: str | None = None,
    label: Label = None,
) -> Response:
    """List jobs, newest first."""
    which = service.JobFilter(status, method, dataset, label or [])
    ids = partial(service.page_ids, owner=caller.owner, page=page, which=which)
    return await answer_page(request, "job", caller.owner, JobView, page.limit, ids, service.views_by_id)


@router.get("/{job_id}", response_model=JobView, responses=responses(404) | POLLED)
async def read_job(caller: ReadCaller, job_id: str, poll: PollDep) -> Response:
    """Read a job, its stages and how far they are."""
    subject = Subject("job", job_id, caller.owner, JobView)
    return await poll.answer(subject, partial(service.read_job, owner=caller.owner, job_id=job_id))


@router.delete("/{job_id}", responses=responses(404, 409))
def delete_job(caller: WriteCaller, job_id: str, tx: TransactionDep) -> Deleted:
    """Delete a finished job."""
    changes.delete_job(tx, caller.owner, job_id)
    return Deleted(id=job_id, object="job")


@router.post("/{job_id}/cancel", responses=responses(404, 409))
def cancel_job(caller: WriteCaller, job_id: str, tx: TransactionDep, after: BackgroundTasks) -> JobView:
    """Cancel a job at once; what it has finished is kept. Cancelling again changes nothing."""
    job, runs = changes.cancel(tx, caller.owner, job_id)
    _apply_after(after, runs)
    return job_view(tx.session, job)


@router.post("/{job_id}/pause", responses=responses(404, 409))
def pause_job(caller: WriteCaller, job_id: str, tx: TransactionDep, after: BackgroundTasks) -> JobView:
    """Pause a job: what runs saves a checkpoint and stops."""
    job, runs = changes.pause(tx, caller.owner, job_id)
    _apply_after(after, runs)
    return job_view(tx.session, job)


@router.post("/{job_id}/resume", responses=responses(404, 409))
def resume_job(
    caller: WriteCaller,
    job_id: str,
    tx: TransactionDep,
    after: BackgroundTasks,
    body: ResumeJob | None = None,
) -> JobView:
    """Resume a paused job, if wanted with another split: it and what depends on it run anew.

    A job that waited at a stage before a person paused it waits there again.
    """
    job, runs = changes.resume(tx, caller.owner, job_id, body or ResumeJob())
    _apply_after(after, runs)
    return job_view(tx.session, job)


@router.get("/{job_id}/events", response_model=EventPage, responses={200: AS_STREAM, **responses(404)})
async def list_events(
    request: Request,
    caller: ReadCaller,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Id of the last event that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100, description="Events a page.")] = 20,
    last_event_id: LastEventId = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """List a job's events, oldest first; with `Accept: text/event-stream` as they come.

    A stream begins behind `Last-Event-ID` (or `after`), keeps silent connections open by comments, and ends
    once the job has finished and all is sent. It may also end when the server stops: go on from the last id.
    """
    known = after if last_event_id is None else last_event_id
    if wants_stream(accept):
        await run_in_threadpool(service.check_job, caller.owner, job_id)
        return EventStream(request.app.state.feed, Place(job_id, known))
    page = await run_in_threadpool(service.list_events, caller.owner, job_id, after=known, limit=limit)
    return Response(page.model_dump_json(), media_type="application/json", headers={"Vary": "Accept"})


@router.get("/{job_id}/metrics", responses=responses(404))
def read_metrics(
    caller: ReadCaller,
    session: SessionDep,
    job_id: str,
    stage: str | None = None,
    names: Names = None,
    points: Points = 500,
) -> MetricList:
    """Read what a job's stages reported by step. `names` is repeated, or separated by commas."""
    wanted = [name for part in names or [] for name in part.split(",") if name]
    return metrics.read_metrics(session, caller.owner, job_id, stage=stage, names=wanted, points=points)


@router.get("/{job_id}/report", responses=responses(404, 409))
def read_report(caller: ReadCaller, session: SessionDep, job_id: str) -> report.Report:
    """Read the report of a job that has succeeded."""
    return report.read_report(session, caller.owner, job_id)


def _apply_after(after: BackgroundTasks, runs: list[str]) -> None:
    """Once committed, advance other jobs that waited on runs which this one took away."""
    for run_id in runs:
        after.add_task(apply_run, run_id)
