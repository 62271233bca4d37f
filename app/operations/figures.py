"""What /metrics tells from the database and Redis, so that every API process tells the same."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import func, select

from app.operations.readiness import redis_client
from app.operations.schemas import QueueView
from app.operations.service import read_queue
from core import tallies
from core.database import open_session
from core.heartbeats import live_workers
from core.sampling import ALIVE, REQUESTS
from core.states import JobState
from core.tables import Job

Sums = dict[tuple[str, tallies.Labels], float]

HISTOGRAMS = {
    tallies.CLAIM_SECONDS: "Time that a run waited in the queue before this attempt was claimed",
    tallies.STAGE_SECONDS: "Time of a published attempt from claim to publication, by kind of run",
}
COUNTERS = {
    tallies.CRASHES: ("kind", "Children that died while their worker watched"),
    tallies.LEASES_LOST: ("", "Claims that ran out because nobody renewed them"),
}


def read_database() -> list[Metric]:
    """Queue, jobs, workers, and what workers have counted; raises SQLAlchemyError."""
    parts = [f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum")]
    counted = select(Job.status, func.count()).where(Job.deleted_at.is_(None)).group_by(Job.status)
    with open_session() as session:
        queue = read_queue(session)
        jobs = {str(status): count for status, count in session.execute(counted)}
        sums = tallies.read(session, [*parts, *COUNTERS])
        samplers = sum(worker.slot == "sampler" for worker in live_workers(session))
    return [*_queue(queue, samplers), _jobs(jobs), *_counters(sums), *_histograms(sums)]


def read_redis() -> list[Metric]:
    """The sampler's queue; raises RedisError, OSError."""
    redis = redis_client()
    waiting = GaugeMetricFamily("mpo_sampler_requests", "Requests that the sampler has not answered yet")
    waiting.add_metric([], float(redis.xlen(REQUESTS)))
    alive = GaugeMetricFamily("mpo_sampler_up", "Whether a sampler has been heard of lately")
    alive.add_metric([], float(bool(redis.exists(ALIVE))))
    return [waiting, alive]


def _queue(queue: QueueView, samplers: int) -> Iterator[Metric]:
    runs = GaugeMetricFamily("mpo_queue_runs", "Unfinished runs", labels=["slot", "state"])
    oldest = GaugeMetricFamily(
        "mpo_queue_oldest_seconds", "Age of the run that waits longest; 0 where none does", labels=["slot"]
    )
    workers = GaugeMetricFamily("mpo_workers", "Workers heard of lately", labels=["slot"])
    capacity = GaugeMetricFamily("mpo_worker_slots", "Runs that they take at a time", labels=["slot"])
    for slot in queue.slots:
        for state in ("queued", "running", "paused"):
            runs.add_metric([slot.slot, state], getattr(slot, state))
        oldest.add_metric([slot.slot], slot.oldest_queued_seconds or 0.0)
        workers.add_metric([slot.slot], slot.workers)
        capacity.add_metric([slot.slot], slot.concurrency)
    workers.add_metric(["sampler"], samplers)
    yield from (runs, oldest, workers, capacity)


def _jobs(jobs: dict[str, int]) -> Metric:
    family = GaugeMetricFamily("mpo_jobs", "Jobs that are not deleted", labels=["status"])
    for status in JobState:
        family.add_metric([str(status)], jobs.get(str(status), 0))
    return family


def _counters(sums: Sums) -> Iterator[Metric]:
    for name, (label, text) in COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=[label] if label else [])
        found = {labels: value for (of, labels), value in sums.items() if of == name}
        for labels, value in (found or ({} if label else {(): 0.0})).items():
            family.add_metric([value for _, value in labels], value)
        yield family


def _histograms(sums: Sums) -> Iterator[Metric]:
    for name, text in HISTOGRAMS.items():
        counts: dict[tallies.Labels, dict[str, float]] = defaultdict(dict)
        for (of, labels), value in sums.items():
            if of == f"{name}_bucket":
                others = tuple(pair for pair in labels if pair[0] != "le")
                counts[others][dict(labels)["le"]] = value
        names = [label for label, _ in next(iter(counts), ())]
        family = HistogramMetricFamily(name, text, labels=names)
        for labels, found in counts.items():
            total = sums.get((f"{name}_sum", labels), 0.0)
            bounds = [*(str(float(bound)) for bound in tallies.BUCKETS[name]), "+Inf"]
            family.add_metric([value for _, value in labels], _cumulated(bounds, found), total)
        yield family


def _cumulated(bounds: Iterable[str], found: dict[str, float]) -> list[tuple[str, float]]:
    """Prometheus wants each bucket to hold all smaller ones; rows hold each its own."""
    total, cumulated = 0.0, []
    for bound in bounds:
        total += found.get(bound, 0.0)
        cumulated.append((bound, total))
    return cumulated
