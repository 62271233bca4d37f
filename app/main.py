"""The HTTP service: `uvicorn app.main:app`."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from app import documentation, problems
from app.artifacts import routes as artifacts
from app.comparisons import routes as comparisons
from app.datasets import routes as datasets
from app.evaluations import routes as evaluations
from app.event_streams import EventFeed
from app.fine_tuning import files
from app.fine_tuning import jobs as fine_tuning
from app.inference import routes as inference
from app.inference.replies import SamplerGateway
from app.jobs import routes as jobs
from app.jobs.submissions import Submissions
from app.marks import Marks
from app.middleware import RequestFrame
from app.models import routes as models
from app.operations import routes as operations
from app.operations.metrics import Metrics
from app.runs import routes as runs
from app.stopping import told_of_a_stop
from app.streams import Bodies
from app.watching import Watcher
from core import logs
from core.database import dispose
from core.settings import settings

# One line a noun. They are tried in this order: what is called most comes first.
ROUTERS: list[APIRouter] = [
    jobs.router,
    datasets.router,
    models.router,
    runs.router,
    artifacts.router,
    artifacts.job_router,
    operations.router,
    inference.router,
    comparisons.router,
    evaluations.router,
    files.router,
    fine_tuning.router,
]


COLLECTOR_THRESHOLDS = (20_000, 20, 20)
ANYWHERE = (400, 401, 403, 413, 422, 503)
"""What every call with a key can answer."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings()  # refuses to start on a wrong setting rather than at the first request
    logs.configure("api")
    _spare_the_collector()
    with told_of_a_stop(app.state.watcher.let_go, app.state.feed.let_go):
        yield
    await app.state.watcher.stop()
    await app.state.feed.stop()
    await app.state.sampler.close()
    dispose()


def _spare_the_collector() -> None:
    """What was imported stays for good: the collector need not walk through it over and over.

    Requests leave few cycles; with the interpreter's own thresholds a sixth of a submission's time, and most
    of its slowest hundredth, went to looking for them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def create_app() -> FastAPI:
    """The application, with every route. Reads no settings before it starts."""
    app = FastAPI(
        title="MPO service",
        version="1",
        summary="Trains language models on human preferences by Mixed Preference Optimization.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.marks, app.state.bodies = Marks(), Bodies()
    app.state.watcher = Watcher()
    app.state.feed = EventFeed()
    app.state.sampler = SamplerGateway()
    app.state.located = {}
    app.state.submissions = Submissions()
    app.state.twins = WeakValueDictionary()
    app.state.methods_of = _methods_of
    app.state.metrics = Metrics()
    app.include_router(operations.probes)
    for router in ROUTERS:
        app.include_router(router, responses=problems.responses(*ANYWHERE))
    documentation.install(app)
    problems.install(app)
    app.add_middleware(RequestFrame, observe=app.state.metrics.observe)
    return app


def _methods_of(path: str) -> list[str]:
    """What a path takes: the framework's own 405 names only the first route of a path."""
    routes = [route for router in (operations.probes, *ROUTERS) for route in router.routes]
    here = [r for r in routes if isinstance(r, APIRoute) and r.path_regex.match(path)]
    return sorted({method for route in here for method in route.methods or ()})


app = create_app()
