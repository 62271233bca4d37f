"""OpenAI's `/v1/files`: datasets under another name."""

import gzip
import json
import zlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy import select
from starlette.datastructures import UploadFile

from app.datasets import service, uploads
from app.datasets.making import delete_with_content, make_with_content
from app.datasets.schemas import DatasetCreate, Kind
from app.dependencies import ReadCaller, SessionDep, StorageDep, WriteCaller
from app.idempotency import Made, OnceDep, creates, fingerprint_of
from app.ownership import find_owned
from app.pagination import Page, PageDep, list_page
from app.problems import responses
from app.validation import parse_body
from app.wire import Body, Seconds, View
from core.errors import Unprocessable
from core.tables import Dataset

router = APIRouter(prefix="/v1/files", tags=["openai"])

FIRST_ROW_BYTES = 64 << 10
STATUSES = {
    "awaiting_content": "uploaded",
    "validating": "uploaded",
    "ready": "processed",
    "invalid": "error",
}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                    },
                }
            }
        },
    }
}


class FileCreate(Body):
    """What goes with a file."""

    purpose: Literal["fine-tune"] = Field(description="What the file is for.")


class FileView(View):
    """A file as OpenAI's clients know it; its id is the dataset's."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: Seconds
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    expires_at: None = None


class FileDeleted(View):
    """The file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("", response_model=FileView, openapi_extra=FORM, responses=creates(200))
async def create_file(request: Request, caller: WriteCaller, storage: StorageDep, once: OnceDep) -> Response:
    """Upload training data. Rows of `text` are for supervised training, all others are preferences."""
    if uploads.media_type_of(request.headers.get("content-type")) != "multipart/form-data":
        raise Unprocessable("The body should be a form with `file` and `purpose`", loc=("body", "file"))
    async with uploads.opened_form(request) as form:
        fields = dict(form)
        file = fields.pop("file", None)
        if not isinstance(file, UploadFile):
            raise Unprocessable("The form needs the part `file`, a file", loc=("body", "file"))
        parse_body(FileCreate, {name: value for name, value in fields.items() if name == "purpose"})
        kind = kind_of(await file.read(FIRST_ROW_BYTES))
        await file.seek(0)
        body = parse_body(DatasetCreate, {"name": (file.filename or "file")[:200], "kind": kind})
        stored = await uploads.store_upload(storage, uploads.file_chunks(file))
        media_type = uploads.media_type_of(file.content_type)

    def made(dataset: Dataset) -> Made:
        return Made(file_view(dataset), 200, f"/v1/files/{dataset.id}")

    same = fingerprint_of(f"{body.model_dump_json()} {stored.sha256}".encode())
    return await make_with_content(once, caller.owner, body, storage, stored, media_type, made, same)


@router.get("")
def list_files(
    caller: ReadCaller,
    session: SessionDep,
    page: PageDep,
    purpose: Annotated[str | None, Query(description="All files are for `fine-tune`.")] = None,
) -> Page[FileView]:
    """Files, newest first."""
    statement = select(Dataset).where(
        Dataset.owner == caller.owner, Dataset.deleted_at.is_(None), Dataset.sha256.is_not(None)
    )
    if purpose not in (None, "fine-tune"):
        statement = statement.where(Dataset.id.is_(None))
    return list_page(session, statement, Dataset.id, "dataset", page, file_view)


@router.get("/{file_id}", responses=responses(404))
def read_file(file_id: str, caller: ReadCaller, session: SessionDep) -> FileView:
    """One file."""
    return file_view(find_owned(session, Dataset, caller.owner, file_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, **responses(404, 409)},
)
def read_content(file_id: str, caller: ReadCaller, session: SessionDep, storage: StorageDep) -> Response:
    """The bytes as they were uploaded."""
    dataset = find_owned(session, Dataset, caller.owner, file_id)
    if dataset.location is None:
        raise service.not_validated(dataset)
    return StreamingResponse(storage.read_chunks(dataset.location), media_type="application/octet-stream")


@router.delete("/{file_id}", responses=responses(404, 409))
def delete_file(file_id: str, caller: WriteCaller, storage: StorageDep) -> FileDeleted:
    """Delete a file, unless a job that has not finished uses it."""
    delete_with_content(caller.owner, file_id, storage)
    return FileDeleted(id=file_id)


def file_view(dataset: Dataset) -> FileView:
    """A dataset as a file."""
    error = dataset.error or {}
    return FileView(
        id=dataset.id,
        bytes=dataset.bytes or 0,
        created_at=dataset.created_at,
        filename=dataset.name,
        status=STATUSES[dataset.status],
        status_details=error.get("message"),
    )


def kind_of(beginning: bytes) -> Kind:
    """What a file's first row says that it holds; what cannot be told is left to validation."""
    if beginning[:2] == b"\x1f\x8b":
        try:
            beginning = zlib.decompressobj(wbits=31).decompress(beginning, FIRST_ROW_BYTES)
        except (zlib.error, gzip.BadGzipFile):
            return "preference"
    try:
        row = json.loads(beginning.lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return "preference"
    return "text" if isinstance(row, dict) and "text" in row and "chosen" not in row else "preference"
