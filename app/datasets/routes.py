"""Datasets over HTTP."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from app.authentication import Caller
from app.datasets import reports, rows, service, uploads
from app.datasets.making import delete_with_content, make_with_content
from app.datasets.schemas import DatasetCreate, DatasetRow, DatasetView, ReportView
from app.dependencies import ReadCaller, SessionDep, StorageDep, WriteCaller
from app.idempotency import Made, Once, OnceDep, creates, fingerprint_of
from app.marks import Mark
from app.ownership import find_owned
from app.pagination import Page, PageDep, RowPageDep, list_page
from app.problems import responses
from app.streams import POLLED, PollDep, Subject
from app.validation import parse_body
from app.wire import Deleted
from core.database import open_session, open_transaction
from core.errors import ServiceError, Unprocessable
from core.storage import Storage
from core.stored_files import StoredFile
from core.tables import Dataset

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_FORM = DatasetCreate.model_json_schema()
_FORM = {
    **_FORM,
    "properties": {"file": {"type": "string", "format": "binary"}, **_FORM["properties"]},
    "required": ["file"],
}
CREATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DatasetCreate.model_json_schema()},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
CONTENT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "",
    status_code=201,
    response_model=DatasetView,
    openapi_extra=CREATE_BODY,
    responses={202: {"model": DatasetView, "description": "Made with its content"}, **creates(201)},
)
async def create_dataset(
    request: Request, caller: WriteCaller, storage: StorageDep, once: OnceDep
) -> Response:
    """Make a dataset: from JSON one that awaits its content (201), or as a form one with its file (202)."""
    if uploads.media_type_of(request.headers.get("content-type")) == "multipart/form-data":
        return await _create_from_form(request, caller, storage, once)
    body = parse_body(DatasetCreate, await request.body())
    return await once.answer(
        caller.owner, lambda tx: _made(service.create_dataset(tx, caller.owner, body), 201)
    )


async def _create_from_form(request: Request, caller: Caller, storage: Storage, once: Once) -> Response:
    async with uploads.opened_form(request) as form:
        fields = dict(form)
        file = fields.pop("file", None)
        if not isinstance(file, UploadFile):
            raise Unprocessable("The form needs the part `file`, a file", loc=("body", "file"))
        fields.setdefault("name", file.filename or "")
        body = parse_body(DatasetCreate, fields)
        stored = await uploads.store_upload(storage, uploads.file_chunks(file))
        media_type = uploads.media_type_of(file.content_type)

    # Boundaries differ from try to try: the fields and the content's digest are what must be the same.
    same = fingerprint_of(f"{body.model_dump_json()} {media_type} {stored.sha256}".encode())
    return await make_with_content(
        once, caller.owner, body, storage, stored, media_type, partial(_made, status=202), same
    )


@router.put(
    "/{dataset_id}/content",
    status_code=202,
    response_model=DatasetView,
    openapi_extra=CONTENT_BODY,
    responses={200: {"model": DatasetView, "description": "It has this content"}, **responses(404, 409)},
)
async def put_content(
    dataset_id: str,
    request: Request,
    caller: WriteCaller,
    storage: StorageDep,
    content_digest: Annotated[str | None, Header()] = None,
) -> Response:
    """Upload the content: JSON Lines, JSON, CSV or Parquet, each also gzip; the same content again is 200."""
    expected = uploads.expected_digest(content_digest)
    await run_in_threadpool(_check_exists, caller.owner, dataset_id)
    stored = await uploads.store_upload(storage, uploads.body_chunks(request), expected)
    media_type = uploads.media_type_of(request.headers.get("content-type"))
    view, is_new = await run_in_threadpool(_accept, caller.owner, dataset_id, storage, stored, media_type)
    return _answer(view, 202 if is_new else 200)


def _check_exists(owner: str, dataset_id: str) -> None:
    with open_session() as session:
        find_owned(session, Dataset, owner, dataset_id)


def _accept(
    owner: str, dataset_id: str, storage: Storage, stored: StoredFile, media_type: str | None
) -> tuple[DatasetView, bool]:
    try:
        with open_transaction() as tx:
            dataset, is_new = service.accept_content(tx, owner, dataset_id, stored, media_type)
            view = DatasetView.model_validate(dataset)
    except ServiceError:
        # Not on other errors: a commit whose answer was lost may have named these bytes.
        storage.delete(stored.name)
        raise
    if not is_new:
        storage.delete(stored.name)
    return view, is_new


@router.get("")
def list_datasets(caller: ReadCaller, session: SessionDep, page: PageDep) -> Page[DatasetView]:
    """Datasets, newest first."""
    statement = select(Dataset).where(Dataset.owner == caller.owner, Dataset.deleted_at.is_(None))
    return list_page(session, statement, Dataset.id, "dataset", page, DatasetView.model_validate)


@router.get("/{dataset_id}", response_model=DatasetView, responses=responses(404) | POLLED)
async def read_dataset(dataset_id: str, caller: ReadCaller, poll: PollDep) -> Response:
    """One dataset. `wait` holds the answer until it changes; a ready or invalid one answers at once."""

    def read(session: Session, _: Mark) -> DatasetView:
        return DatasetView.model_validate(find_owned(session, Dataset, caller.owner, dataset_id))

    return await poll.answer(Subject("dataset", dataset_id, caller.owner, DatasetView), read)


@router.delete("/{dataset_id}", responses=responses(404, 409))
def delete_dataset(dataset_id: str, caller: WriteCaller, storage: StorageDep) -> Deleted:
    """Delete a dataset, unless a job that has not finished uses it."""
    delete_with_content(caller.owner, dataset_id, storage)
    return Deleted(id=dataset_id, object="dataset")


@router.get("/{dataset_id}/rows", responses=responses(404, 409))
def list_rows(dataset_id: str, caller: ReadCaller, storage: StorageDep, page: RowPageDep) -> Page[DatasetRow]:
    """The canonical rows, in the file's order."""
    with open_session() as session:
        dataset = find_owned(session, Dataset, caller.owner, dataset_id)
    with TemporaryDirectory() as scratch:
        return rows.rows_page(
            _rows_file(dataset, storage, Path(scratch) / "rows.parquet"), dataset.kind, page
        )


@router.get("/{dataset_id}/report", responses=responses(404, 409))
def read_report(
    dataset_id: str,
    caller: ReadCaller,
    storage: StorageDep,
    against: Annotated[str | None, Query(description="Another dataset: how many prompts both hold.")] = None,
    model: Annotated[
        str | None, Query(description="A model in whose tokens lengths are counted too.")
    ] = None,
) -> ReportView:
    """What validation found, of an invalid dataset too."""
    with open_session() as session:
        dataset = find_owned(session, Dataset, caller.owner, dataset_id)
        other = find_owned(session, Dataset, caller.owner, against) if against else None
        base = reports.base_of(session, caller.owner, model) if model else None
    if dataset.report is None:
        raise service.not_validated(dataset)
    report = ReportView.model_validate({**dataset.report, "dataset": dataset.id})
    if base is not None:
        report = report.model_copy(update=reports.in_tokens(dataset, base))
    if other is None:
        return report
    if "text" in (dataset.kind, other.kind):
        raise Unprocessable("Both datasets should hold prompts", loc=("query", "against"))
    with TemporaryDirectory() as scratch:
        files = [_rows_file(d, storage, Path(scratch) / d.id) for d in (dataset, other)]
        return report.model_copy(update={"shared_prompts": rows.shared_prompts(*files)})


def _rows_file(dataset: Dataset, storage: Storage, scratch: Path) -> Path:
    if dataset.rows_location is None:
        raise service.not_validated(dataset)
    return storage.fetch(dataset.rows_location, scratch)


def _made(dataset: Dataset, status: int) -> Made:
    return Made(DatasetView.model_validate(dataset), status, f"/v1/datasets/{dataset.id}")


def _answer(view: DatasetView, status: int) -> Response:
    headers = {"Location": f"/v1/datasets/{view.id}"}
    return Response(view.model_dump_json(), status, headers, media_type="application/json")
