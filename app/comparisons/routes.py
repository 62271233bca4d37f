"""Comparisons over HTTP."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app.authentication import Caller
from app.comparisons import service
from app.comparisons.csv_rows import stream_csv
from app.comparisons.schemas import ComparisonCreate, ComparisonRowView, ComparisonView
from app.dependencies import ReadCaller, SessionDep, WriteCaller
from app.idempotency import REPLAYED, Made, OnceDep, creates
from app.pagination import Page, PageDep, RowPageDep, list_page
from app.problems import responses
from app.streams import POLLED, Poll, PollDep, Subject
from core.database import Transaction, open_transaction
from core.tables import Comparison

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])

CSV = "text/csv"
ROWS_AS_CSV: dict[int | str, dict[str, Any]] = {
    200: {"description": "Rows", "content": {CSV: {"schema": {"type": "string"}}}}
}


@router.post("", status_code=202, response_model=ComparisonView, responses=creates(202))
async def create_comparison(
    caller: WriteCaller, body: ComparisonCreate, poll: PollDep, once: OnceDep
) -> Response:
    """Compare models on prompts; with `wait`, answers once it has finished or the time is up."""

    def make(tx: Transaction) -> Made:
        comparison_id = service.create_comparison(tx, caller.owner, body)
        made = service.read_comparison(tx.session, caller.owner, comparison_id)
        return Made(made, 202, f"/v1/comparisons/{comparison_id}")

    answer = await once.answer(caller.owner, make)
    if not poll.wait_seconds:
        return answer
    # A replay waits as the first request did, and tells how far the same comparison is.
    headers = {name: answer.headers[name] for name in ("Location", REPLAYED) if name in answer.headers}
    comparison_id = headers["Location"].rpartition("/")[2]
    return await _polled(poll, caller, comparison_id, status=202, headers=headers, until_finished=True)


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
    return await _polled(poll, caller, comparison_id)


@router.get(
    "/{comparison_id}/rows",
    response_model=Page[ComparisonRowView],
    responses=responses(404) | ROWS_AS_CSV,
)
def list_rows(
    caller: ReadCaller,
    comparison_id: str,
    session: SessionDep,
    page: RowPageDep,
    accept: Annotated[str, Header()] = "*/*",
) -> Any:
    """The rows that there are, a page at a time; with `Accept: text/csv` all of them, a line a response."""
    if CSV in accept.lower():
        comparison = service.find_comparison(session, caller.owner, comparison_id)
        headers = {"Content-Disposition": f'attachment; filename="{comparison.id}.csv"'}
        return StreamingResponse(stream_csv(comparison.id), media_type=CSV, headers=headers)
    return service.list_rows(session, caller.owner, comparison_id, page)


@router.post("/{comparison_id}/cancel", response_model=ComparisonView, responses=responses(404, 409))
async def cancel_comparison(caller: WriteCaller, comparison_id: str, poll: PollDep) -> Response:
    """End a comparison; the rows that it has stay."""

    def cancel() -> None:
        with open_transaction() as tx:
            service.cancel_comparison(tx, caller.owner, comparison_id)

    await run_in_threadpool(cancel)
    return await _polled(poll, caller, comparison_id)


async def _polled(poll: Poll, caller: Caller, comparison_id: str, **how: Any) -> Response:
    subject = Subject("comparison", comparison_id, caller.owner, ComparisonView)
    return await poll.answer(
        subject, lambda session, _: service.read_comparison(session, caller.owner, comparison_id), **how
    )
