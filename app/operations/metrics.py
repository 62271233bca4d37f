"""Prometheus: requests of this process or of its port, and what the database and Redis tell to all."""

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from app.middleware import route_of
from app.operations.figures import read_database, read_redis
from app.operations.questions import NoAnswer, Question
from core.settings import settings

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
KEPT_SECONDS = 2.0
ANSWER_SECONDS = 3.0
"""A scraper usually waits ten."""

logger = logging.getLogger(__name__)


class _Shared:
    """A source that does not answer in time is said to be down, and its figures are left out."""

    def __init__(self) -> None:
        self._sources = {"postgres": Question(read_database), "redis": Question(read_redis)}

    async def read(self) -> "_Read":
        found: list[Metric] = []
        up = GaugeMetricFamily("mpo_up", "Whether what figures are read from answers", labels=["part"])
        for name, source in self._sources.items():
            try:
                found += await source.answer(within_seconds=ANSWER_SECONDS, kept_seconds=KEPT_SECONDS)
            except (SQLAlchemyError, RedisError, OSError, NoAnswer) as error:
                # The requests' figures are wanted above all while something is away.
                logger.warning("no figures from %s: %s", name, type(error).__name__)
                up.add_metric([name], 0)
            else:
                up.add_metric([name], 1)
        return _Read([*found, up])


class _Read(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found


class Metrics:
    """One application's figures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._shared = _Shared()
        labels = ["method", "route", "status"]
        self._requests = Counter("mpo_http_requests", "Requests", labels, registry=self._registry)
        self._seconds = Histogram(
            "mpo_http_request_seconds",
            "Time to the end of the answer",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request, by its route and not its path, which would make a figure for every id."""
        route = route_of(scope)
        self._requests.labels(scope["method"], route, str(status)).inc()
        self._seconds.labels(scope["method"], route).observe(seconds)

    async def text(self) -> bytes:
        """Prometheus's text format."""
        shared = CollectorRegistry(auto_describe=False)
        shared.register(await self._shared.read())
        return generate_latest(self._of_requests()) + generate_latest(shared)

    def _of_requests(self) -> CollectorRegistry:
        if settings().metrics_folder is None:
            return self._registry
        # Behind one port a scraper meets now one process, now another.
        all_processes = CollectorRegistry(auto_describe=False)
        MultiProcessCollector(all_processes, str(settings().metrics_folder))  # type: ignore[no-untyped-call]
        return all_processes
