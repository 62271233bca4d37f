"""Operations over HTTP. The first three need no key: probes and scrapers have none."""

from fastapi import APIRouter, Request, Response

from app.dependencies import AdminCaller, ReadCaller, SessionDep, TransactionDep
from app.idempotency import Made, OnceDep, creates
from app.operations import readiness, service
from app.operations.schemas import Health, KeyCreate, KeyView, QueueView, Readiness, WorkerView
from app.pagination import Page, page_of
from app.problems import responses
from app.wire import Deleted
from core.database import Transaction
from core.heartbeats import live_workers

probes = APIRouter(tags=["operations"])
router = APIRouter(prefix="/v1", tags=["operations"])


@probes.get("/healthz")
async def read_health() -> Health:
    """The process answers."""
    return Health()


@probes.get("/readyz", responses={503: {"model": Readiness, "description": "Something is missing"}})
async def read_readiness(response: Response) -> Readiness:
    """Whether Postgres, Redis, the store, migrations, workers and the sampler are there."""
    found = await readiness.read_readiness()
    if not found.ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return found


@probes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def read_metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(await request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/workers")
def list_workers(caller: ReadCaller, session: SessionDep) -> Page[WorkerView]:
    """Workers and samplers that have been heard of lately."""
    views = [WorkerView.model_validate(worker) for worker in live_workers(session)]
    return page_of(views, len(views), lambda view: view.id, lambda view: view)


@router.get("/queue")
def read_queue(caller: ReadCaller, session: SessionDep) -> QueueView:
    """How many runs wait and run in each slot class."""
    return service.read_queue(session)


@router.post("/keys", status_code=201, response_model=KeyView, responses=creates(201))
async def create_key(body: KeyCreate, caller: AdminCaller, once: OnceDep) -> Response:
    """Make an API key. This answer alone shows it.

    A replay by Idempotency-Key makes no second one and has `key` null, as only a hash of the key is kept: if
    the first answer was lost, delete the key by its id and make another.
    """

    def make(tx: Transaction) -> Made:
        view = service.create_key(tx, caller, body)
        headers = {"Cache-Control": "no-store"}
        return Made(view, 201, f"/v1/keys/{view.id}", headers, kept=view.model_copy(update={"key": None}))

    return await once.answer(caller.owner, make)


@router.delete("/keys/{key_id}", responses=responses(404))
def delete_key(key_id: str, caller: AdminCaller, tx: TransactionDep) -> Deleted:
    """Make an API key useless at once."""
    service.delete_key(tx, key_id)
    return Deleted(id=key_id, object="api_key")
