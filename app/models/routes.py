"""Models over HTTP."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.authentication import MissingScope
from app.dependencies import (
    AdminCaller,
    ReadCaller,
    SessionDep,
    StorageDep,
    TransactionDep,
    WriteCaller,
)
from app.idempotency import Made, OnceDep, creates
from app.models import downloads, queries, service
from app.models.schemas import FileList, FileView, ModelCreate, ModelView
from app.pagination import After, Limit, Order, Page, PageQuery
from app.problems import responses
from app.streams import POLLED, PollDep
from app.wire import Deleted
from core.database import Transaction, open_transaction
from core.errors import Conflict, NotFound

router = APIRouter(prefix="/v1/models", tags=["models"])

Form = Annotated[
    Literal["merged", "adapter"] | None,
    Query(description="A model with LoRA weights: merged into its base, or the adapter alone."),
]


ADAPTER_FOLDER = "adapter/"


class FormNotKept(Conflict):
    """The model is not kept in this form."""

    code = "form_not_kept"


def _model_page(limit: Limit = 100, after: After = None, order: Order = "desc") -> PageQuery:
    """OpenAI's clients ask for models without a limit, and expect all of them."""
    return PageQuery(limit, after, order)


@router.get("")
def list_models(
    caller: ReadCaller, session: SessionDep, page: Annotated[PageQuery, Depends(_model_page)]
) -> Page[ModelView]:
    """Base models, and what the owner's jobs have trained, newest first."""
    return queries.models_page(session, caller.owner, page)


@router.post("", status_code=201, response_model=ModelView, responses=creates(201))
async def create_model(body: ModelCreate, caller: AdminCaller, once: OnceDep) -> Response:
    """Register a folder on the server as a base model; it must lie below an allowed root."""

    def make(tx: Transaction) -> Made:
        model = service.create_model(tx, caller.owner, body)
        return Made(service.get_model(tx.session, caller.owner, model.name), 201, f"/v1/models/{model.name}")

    return await once.answer(caller.owner, make)


@router.get("/{model_id}", response_model=ModelView, responses=responses(404) | POLLED)
async def read_model(model_id: str, caller: ReadCaller, poll: PollDep) -> Response:
    """One model."""

    return await poll.answer_by_content(lambda s: service.get_model(s, caller.owner, model_id))


@router.delete("/{model_id}", responses=responses(404, 409))
def delete_model(model_id: str, caller: WriteCaller, tx: TransactionDep) -> Deleted:
    """Delete a trained model, or (admin) forget a base model, unless something still uses it."""
    if ":" in model_id:
        service.delete_trained_model(tx, caller.owner, model_id)
    elif "admin" in caller.scopes:
        service.delete_base_model(tx, model_id)
    else:
        raise MissingScope("admin")
    return Deleted(id=model_id, object="model")


@router.get("/{model_id}/files", responses=responses(404, 409))
def list_files(model_id: str, caller: ReadCaller, tx: TransactionDep, form: Form = None) -> FileList:
    """The files of a folder that `from_pretrained` loads; `form=adapter`: of one that peft loads."""
    return FileList(data=_files(tx, caller.owner, model_id, form)[1])


@router.head("/{model_id}/files/{name:path}", include_in_schema=False)
@router.get(
    "/{model_id}/files/{name:path}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        206: {"content": {"application/octet-stream": {}}, "description": "The range of it"},
        **responses(404, 409, 416),
    },
)
def download_file(
    model_id: str,
    name: str,
    request: Request,
    caller: ReadCaller,
    storage: StorageDep,
    form: Form = None,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """One file, or a range of it. Its ETag is its SHA-256."""
    with open_transaction() as tx:
        location, files = _files(tx, caller.owner, model_id, form)
    file = next((file for file in files if file.name == name), None)
    if file is None:
        raise NotFound(f"The model has no file {name!r}")
    place, head = f"{location}/{file.name}", request.method == "HEAD"
    return downloads.file_response(storage, place, file, range_=range_, if_range=if_range, head=head)


def _files(tx: Transaction, owner: str, model_id: str, form: str | None) -> tuple[str, list[FileView]]:
    """Where the files of a form lie, and which they are: an adapter lies in a folder of the merged model."""
    location, files = service.model_files(tx, owner, model_id)
    inside = [file for file in files if file.name.startswith(ADAPTER_FOLDER)]
    if form != "adapter":
        return location, [file for file in files if file not in inside]
    if not inside:
        raise FormNotKept("The model was trained whole: it has no adapter", form="merged")
    named = [file.model_copy(update={"name": file.name.removeprefix(ADAPTER_FOLDER)}) for file in inside]
    return f"{location}/{ADAPTER_FOLDER.rstrip('/')}", named
