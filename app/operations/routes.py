"""Operations over HTTP. The first three need no key: probes and scrapers have none."""

from fastapi import APIRouter, Request, Response

from app.dependencies import AdminCaller, ReadCaller, SessionDep, TransactionDep
from app.operations import readiness, service
from app.operations.schemas import Health, KeyCreate, KeyView, QueueView, Readiness, WorkerView
from app.pagination import Page, page_of
from app.problems import responses
from app.wire import Deleted
from core.heartbeats import live_workers

probes = APIRouter(tags=["operations"])
router = APIRouter(prefix="/v1", tags=["operations"])


@probes.get("/healthz")
async def read_health() -> Health:
    """The process answers."""
    return Health()


@probes.get("/readyz", responses={503: {"model": Readiness, "description": "Something is missing"}})
def read_readiness(response: Response) -> Readiness:
    """Whether Postgres, Redis, the store, migrations, workers and the sampler are there."""
    found = readiness.read_readiness()
    if not found.ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return found


@probes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def read_metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/workers")
def list_workers(caller: ReadCaller, session: SessionDep) -> Page[WorkerView]:
    """Workers and samplers that have been heard of lately."""
    views = [WorkerView.model_validate(worker) for worker in live_workers(session)]
    return page_of(views, len(views), lambda view: view.id, lambda view: view)


@router.get("/queue")
def read_queue(caller: ReadCaller, session: SessionDep) -> QueueView:
    """How many runs wait and run in each slot class."""
    return service.read_queue(session)


@router.post("/keys", status_code=201)
def create_key(body: KeyCreate, caller: AdminCaller, tx: TransactionDep, response: Response) -> KeyView:
    """Make an API key. This answer alone shows it."""
    view = service.create_key(tx, caller, body)
    response.headers["Location"] = f"/v1/keys/{view.id}"
    response.headers["Cache-Control"] = "no-store"
    return view


@router.delete("/keys/{key_id}", responses=responses(404))
def delete_key(key_id: str, caller: AdminCaller, tx: TransactionDep) -> Deleted:
    """Make an API key useless at once."""
    service.delete_key(tx, key_id)
    return Deleted(id=key_id, object="api_key")
