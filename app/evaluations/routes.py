"""Evaluations over HTTP."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from app.dependencies import ReadCaller, SessionDep, StorageDep, WriteCaller
from app.evaluations import service
from app.evaluations.samples import samples_page
from app.evaluations.schemas import EvaluationCreate, EvaluationSample, EvaluationView
from app.idempotency import OnceDep, creates
from app.pagination import Page, PageDep, RowPageDep, list_page
from app.problems import responses
from app.single_runs import SingleRuns
from app.streams import POLLED, PollDep
from core.tables import Evaluation

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])
EVALUATIONS = SingleRuns("evaluation", EvaluationView, service.read_evaluation)

JSON_LINES = "application/x-ndjson"
SAMPLES_AS_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Samples", "content": {JSON_LINES: {"schema": {"type": "string"}}}}
}


@router.post("", status_code=202, response_model=EvaluationView, responses=creates(202))
async def create_evaluation(
    caller: WriteCaller, body: EvaluationCreate, poll: PollDep, once: OnceDep
) -> Response:
    """Measure models on a dataset's prompts; with `wait`, answers once it has finished or the time is up."""
    return await EVALUATIONS.create(
        once, poll, caller.owner, partial(service.create_evaluation, owner=caller.owner, body=body)
    )


@router.get("")
def list_evaluations(caller: ReadCaller, session: SessionDep, page: PageDep) -> Page[EvaluationView]:
    """The caller's evaluations, newest first."""
    statement = select(Evaluation).where(Evaluation.owner == caller.owner, Evaluation.deleted_at.is_(None))
    return list_page(session, statement, Evaluation.id, "evaluation", page, service.evaluation_view)


@router.get("/{evaluation_id}", response_model=EvaluationView, responses=responses(404) | POLLED)
async def read_evaluation(caller: ReadCaller, evaluation_id: str, poll: PollDep) -> Response:
    """One evaluation, with its report once it has succeeded."""
    return await EVALUATIONS.answer(poll, caller.owner, evaluation_id)


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
    return await EVALUATIONS.cancel(poll, caller.owner, evaluation_id, service.cancel_evaluation)
