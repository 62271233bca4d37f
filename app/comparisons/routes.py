"""Comparisons over HTTP."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app.comparisons import service, voting
from app.comparisons.row_files import HTML_HEADERS, stream_csv, stream_html, stream_json_lines
from app.comparisons.schemas import ComparisonCreate, ComparisonRowView, ComparisonView, VoteBody
from app.datasets import uploads
from app.datasets.making import make_with_content
from app.datasets.schemas import DatasetCreate, DatasetView
from app.dependencies import ReadCaller, SessionDep, StorageDep, TransactionDep, WriteCaller
from app.idempotency import Made, OnceDep, creates
from app.ownership import find_owned
from app.pagination import Page, PageDep, RowPageDep, list_page
from app.problems import responses
from app.single_runs import SingleRuns
from app.streams import POLLED, PollDep
from core.database import open_session
from core.tables import Comparison, Dataset

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])
COMPARISONS = SingleRuns("comparison", ComparisonView, service.read_comparison)

CSV, HTML, JSON_LINES = "text/csv", "text/html", "application/x-ndjson"
ROWS_AS_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Rows",
        "content": {kind: {"schema": {"type": "string"}} for kind in (CSV, HTML, JSON_LINES)},
    }
}


@router.post("", status_code=202, response_model=ComparisonView, responses=creates(202))
async def create_comparison(
    caller: WriteCaller, body: ComparisonCreate, poll: PollDep, once: OnceDep
) -> Response:
    """Compare models on prompts; with `wait`, answers once it has finished or the time is up."""
    return await COMPARISONS.create(
        once, poll, caller.owner, partial(service.create_comparison, owner=caller.owner, body=body)
    )


@router.get("")
def list_comparisons(caller: ReadCaller, session: SessionDep, page: PageDep) -> Page[ComparisonView]:
    """The caller's comparisons, newest first."""
    statement = select(Comparison).where(Comparison.owner == caller.owner, Comparison.deleted_at.is_(None))
    return list_page(
        session, statement, Comparison.id, "comparison", page, partial(service.comparison_view, session)
    )


@router.get("/{comparison_id}", response_model=ComparisonView, responses=responses(404) | POLLED)
async def read_comparison(caller: ReadCaller, comparison_id: str, poll: PollDep) -> Response:
    """One comparison, with its first 20 rows and its win rates."""
    return await COMPARISONS.answer(poll, caller.owner, comparison_id)


@router.get(
    "/{comparison_id}/rows",
    response_model=Page[ComparisonRowView],
    responses=responses(404) | ROWS_AS_FILES,
)
def list_rows(
    caller: ReadCaller,
    comparison_id: str,
    session: SessionDep,
    page: RowPageDep,
    accept: Annotated[str, Header()] = "*/*",
) -> Any:
    """The rows that there are, a page at a time; all of them by Accept.

    `text/csv` has a line a response, `application/x-ndjson` a line a row, `text/html` is a page to read.
    """
    wanted = accept.lower()
    if HTML in wanted:
        comparison = service.read_comparison(session, caller.owner, comparison_id)
        return StreamingResponse(stream_html(comparison), media_type=HTML, headers=HTML_HEADERS)
    for kind, suffix, stream in ((CSV, "csv", stream_csv), (JSON_LINES, "jsonl", stream_json_lines)):
        if kind in wanted:
            found = find_owned(session, Comparison, caller.owner, comparison_id)
            headers = {"Content-Disposition": f'attachment; filename="{found.id}.{suffix}"'}
            return StreamingResponse(stream(found.id), media_type=kind, headers=headers)
    return service.list_rows(session, caller.owner, comparison_id, page)


@router.post("/{comparison_id}/cancel", response_model=ComparisonView, responses=responses(404, 409))
async def cancel_comparison(caller: WriteCaller, comparison_id: str, poll: PollDep) -> Response:
    """End a comparison; the rows that it has stay."""
    return await COMPARISONS.cancel(poll, caller.owner, comparison_id, service.cancel_comparison)


@router.post("/{comparison_id}/votes", responses=responses(404, 422))
def vote(caller: WriteCaller, comparison_id: str, body: VoteBody, tx: TransactionDep) -> ComparisonRowView:
    """Say which of a row's two responses is better; a later vote of the same annotator replaces it.

    Answers the row with its models, which a blind comparison hides before.
    """
    return voting.vote(tx, caller.owner, comparison_id, body)


@router.post(
    "/{comparison_id}/dataset",
    status_code=202,
    response_model=DatasetView,
    responses={**creates(202), **responses(404, 409)},
)
async def make_dataset(
    caller: WriteCaller, comparison_id: str, storage: StorageDep, once: OnceDep
) -> Response:
    """Make a preference dataset of the votes so far, each with its annotator."""

    def read() -> tuple[str, bytes]:
        with open_session() as session:
            comparison, content = voting.voted_pairs(session, caller.owner, comparison_id)
            return comparison.id, content

    name, content = await run_in_threadpool(read)
    stored = await uploads.store_upload(storage, _one_chunk(content))

    def made(dataset: Dataset) -> Made:
        return Made(DatasetView.model_validate(dataset), 202, f"/v1/datasets/{dataset.id}")

    body = DatasetCreate(name=f"votes on {name}")
    return await make_with_content(once, caller.owner, body, storage, stored, JSON_LINES, made)


async def _one_chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content
