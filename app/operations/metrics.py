"""Prometheus: requests of this process, and the queue as the database has it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from app.operations.service import read_queue
from core.database import open_session

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class _Queue(Collector):
    def collect(self) -> Iterator[GaugeMetricFamily]:
        runs = GaugeMetricFamily("mpo_queue_runs", "Unfinished runs", labels=["slot", "state"])
        workers = GaugeMetricFamily("mpo_workers", "Workers heard of lately", labels=["slot"])
        try:
            with open_session() as session:
                queue = read_queue(session)
        except SQLAlchemyError:
            return  # the requests' figures are wanted above all while the database is away
        for slot in queue.slots:
            for state in ("queued", "running", "paused"):
                runs.add_metric([slot.slot, state], getattr(slot, state))
            workers.add_metric([slot.slot], slot.workers)
        yield runs
        yield workers


class Metrics:
    """One application's figures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        labels = ["method", "route", "status"]
        self._requests = Counter("mpo_http_requests", "Requests", labels, registry=self._registry)
        self._seconds = Histogram(
            "mpo_http_request_seconds",
            "Time to the end of the answer",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_Queue())

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request, by its route and not its path, which would make a figure for every id."""
        route = getattr(scope.get("route"), "path", "unmatched")
        self._requests.labels(scope["method"], route, str(status)).inc()
        self._seconds.labels(scope["method"], route).observe(seconds)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)
