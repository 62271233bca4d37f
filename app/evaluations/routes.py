"""Evaluations over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app.authentication import Caller
from app.dependencies import ReadCaller, SessionDep, StorageDep, WriteCaller
from app.evaluations import service
from app.evaluations.samples import samples_page
from app.evaluations.schemas import EvaluationCreate, EvaluationSample, EvaluationView
from app.idempotency import REPLAYED, Made, OnceDep, creates
from app.pagination import Page, PageDep, RowPageDep, list_page
from app.problems import responses
from app.streams import POLLED, Poll, PollDep, Subject
from core.database import Transaction, open_transaction
from core.tables import Evaluation

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])

JSON_LINES = "application/x-ndjson"
SAMPLES_AS_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Samples", "content": {JSON_LINES: {"schema": {"type": "string"}}}}
}


@router.post("", status_code=202, response_model=EvaluationView, responses=creates(202))
async def create_evaluation(
    caller: WriteCaller, body: EvaluationCreate, poll: PollDep, once: OnceDep
) -> Response:
    """Measure models on a dataset's prompts; with `wait`, answers once it has finished or the time is up."""

    def make(tx: Transaction) -> Made:
        evaluation_id = service.create_evaluation(tx, caller.owner, body)
        made = service.read_evaluation(tx.session, caller.owner, evaluation_id)
        return Made(made, 202, f"/v1/evaluations/{evaluation_id}")

    answer = await once.answer(caller.owner, make)
    if not poll.wait_seconds:
        return answer
    # A replay waits as the first request did, and tells how far the same evaluation is.
    headers = {name: answer.headers[name] for name in ("Location", REPLAYED) if name in answer.headers}
    evaluation_id = headers["Location"].rpartition("/")[2]
    return await _polled(poll, caller, evaluation_id, status=202, headers=headers, until_finished=True)


@router.get("")
def list_evaluations(caller: ReadCaller, session: SessionDep, page: PageDep) -> Page[EvaluationView]:
    """The caller's evaluations, newest first."""
    statement = select(Evaluation).where(Evaluation.owner == caller.owner, Evaluation.deleted_at.is_(None))
    return list_page(session, statement, Evaluation.id, "evaluation", page, service.evaluation_view)


@router.get("/{evaluation_id}", response_model=EvaluationView, responses=responses(404) | POLLED)
async def read_evaluation(caller: ReadCaller, evaluation_id: str, poll: PollDep) -> Response:
    """One evaluation, with its report once it has succeeded."""
    return await _polled(poll, caller, evaluation_id)


@router.get(
    "/{evaluation_id}/samples",
    response_model=Page[EvaluationSample],
    responses=responses(404, 409) | SAMPLES_AS_FILE,
)
def list_samples(
    caller: ReadCaller,
    evaluation_id: str,
    session: SessionDep,
    storage: StorageDep,
    page: RowPageDep,
    accept: Annotated[str, Header()] = "*/*",
) -> Any:
    """What every model answered, a prompt a row, a page at a time; all of it as `application/x-ndjson`."""
    location = service.samples_location(session, caller.owner, evaluation_id)
    if JSON_LINES in accept.lower():
        headers = {"Content-Disposition": f'attachment; filename="{evaluation_id}.jsonl"'}
        return StreamingResponse(storage.read_chunks(location), media_type=JSON_LINES, headers=headers)
    with storage.open_read(location) as file:
        return samples_page(file, page)


@router.post("/{evaluation_id}/cancel", response_model=EvaluationView, responses=responses(404, 409))
async def cancel_evaluation(caller: WriteCaller, evaluation_id: str, poll: PollDep) -> Response:
    """End an evaluation; it leaves no report."""

    def cancel() -> None:
        with open_transaction() as tx:
            service.cancel_evaluation(tx, caller.owner, evaluation_id)

    await run_in_threadpool(cancel)
    return await _polled(poll, caller, evaluation_id)


async def _polled(poll: Poll, caller: Caller, evaluation_id: str, **how: Any) -> Response:
    subject = Subject("evaluation", evaluation_id, caller.owner, EvaluationView)
    return await poll.answer(
        subject, lambda session, _: service.read_evaluation(session, caller.owner, evaluation_id), **how
    )
