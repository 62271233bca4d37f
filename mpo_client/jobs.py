"""Jobs: a spec, and the stages that it expands to."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from mpo_client import events
from mpo_client.calls import Call, Deleted, Flow, Plan, Reply, path, send
from mpo_client.events import Event
from mpo_client.metrics import MetricSeries, metric_rows, read_metrics
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed
from mpo_client.tables import as_arrow, as_pandas
from mpo_client.waiting import wait_until

if TYPE_CHECKING:
    import pandas
    import pyarrow

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Spec = Mapping[str, JsonValue]
FINISHED = frozenset({"succeeded", "failed", "cancelled"})
_METRIC_COLUMNS = ("stage", "name", "step", "value")


class Failure(Reply):
    """output: the end of what the process printed."""

    code: str = ""
    message: str = ""
    output: str | None = None


class Progress(Reply):
    step: int | None = None
    total_steps: int | None = None
    fraction: float | None = None
    eta_seconds: float | None = None


class Stage(Reply):
    """`metrics` are the latest, `artifacts` ids by the name of the output."""

    name: str
    kind: str
    status: Literal["waiting", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    cached: bool = False
    run_id: str | None = None
    attempt: int | None = None
    progress: Progress | None = None
    metrics: dict[str, JsonValue] = {}
    artifacts: dict[str, str] = {}
    started_at: int | None = None
    finished_at: int | None = None
    error: Failure | None = None


class Pause(Reply):
    reason: str
    stage: str | None = None
    message: str | None = None


class Job(Reply):
    """`models` names, by stage, what has been trained: to be sampled, compared, downloaded, trained on."""

    id: str
    name: str | None = None
    status: Status
    model: str | None = None
    dataset: str | None = None
    eval_dataset: str | None = None
    method: dict[str, JsonValue] = {}
    labels: dict[str, str] = {}
    stages: list[Stage] = []
    models: dict[str, str] = {}
    queue_position: int | None = None
    pause: Pause | None = None
    progress: Progress | None = None
    created_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: Failure | None = None

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED


class PlannedStage(Reply):
    """What a stage would do. Null where nobody can tell before it runs: `problems` say why."""

    name: str
    kind: str
    key: str
    cached: bool
    tokens: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    basis: Literal["cached", "measured", "estimated"] | None = None
    problems: list[str] = []


class DryRun(Reply):
    """A job that was not created."""

    name: str = ""
    model: str | None = None
    dataset: str | None = None
    method: dict[str, JsonValue] = {}
    stages: list[PlannedStage]


class JobReport(Reply):
    """What `report.json` holds, and more than is named here; None where no stage made it."""

    name: str = ""
    spec: dict[str, JsonValue] = {}
    gaps: dict[str, JsonValue] | None = None
    evaluation: dict[str, JsonValue] | None = None


class JobMethods:
    """What both clients can do with jobs."""

    @answers
    def create(self, spec: Spec) -> Plan[Job]:
        """Queues the job. Raises NotValid, which names each field that can't stand."""
        return send(Call("POST", path("jobs"), Job, body=spec, creates=True))

    @answers
    def dry_run(self, spec: Spec) -> Plan[DryRun]:
        """What the job would do, and what of it is there already. Creates nothing; raises as `create`."""
        query = {"dry_run": "true"}
        return send(Call("POST", path("jobs"), DryRun, query=query, body=spec, changes_nothing=True))

    @answers
    def get(self, job_id: str, *, wait_seconds: float = 0.0) -> Plan[Job]:
        """With `wait_seconds` (at most 60) the answer comes once the job changes."""
        return send(_get(job_id, wait_seconds))

    @answers
    def wait(
        self, job_id: str, *, deadline_seconds: float, on_change: Callable[[Job], None] | None = None
    ) -> Plan[Job]:
        """Until the job is finished, or paused and so in need of someone. Raises DeadlinePassed."""
        return wait_until(
            lambda held: _get(job_id, held),
            done=lambda job: job.is_finished or job.status == "paused",
            what=f"job {job_id}",
            deadline_seconds=deadline_seconds,
            on_change=on_change,
        )

    @answers
    def cancel(self, job_id: str) -> Plan[Job]:
        """At once; what it has finished is kept. Cancelling again changes nothing."""
        return send(Call("POST", path("jobs", job_id, "cancel"), Job))

    @answers
    def pause(self, job_id: str) -> Plan[Job]:
        """What runs saves a checkpoint and stops."""
        return send(Call("POST", path("jobs", job_id, "pause"), Job))

    @answers
    def resume(self, job_id: str, *, split: Mapping[str, JsonValue] | None = None) -> Plan[Job]:
        """`split` replaces the threshold of a job that paused after its split."""
        body = {"split": dict(split)} if split is not None else None
        return send(Call("POST", path("jobs", job_id, "resume"), Job, body=body))

    @answers
    def delete(self, job_id: str) -> Plan[Deleted]:
        """Raises Conflict where the job has not finished."""
        return send(Call("DELETE", path("jobs", job_id), Deleted))

    @answers
    def report(self, job_id: str) -> Plan[JobReport]:
        """Raises Conflict with code `not_finished` until the job has succeeded."""
        return send(Call("GET", path("jobs", job_id, "report"), JobReport))

    @iterates
    def events(self, job_id: str, *, after: int = 0, limit: int | None = None) -> Flow[Event]:
        """Those that there are beyond an id, oldest first."""
        return events.list_events(job_id, after, limit)

    @iterates
    def stream_events(self, job_id: str, *, after: int = 0) -> Flow[Event]:
        """Those beyond an id as they come, until the job's last; a broken connection is taken up again."""
        return events.stream_events(job_id, after)

    @answers
    def metrics(
        self,
        job_id: str,
        *,
        stage: str | None = None,
        names: Sequence[str] | None = None,
        points: int = 500,
    ) -> Plan[Sequence[MetricSeries]]:
        """By stage and name, of each at most `points` steps, its last, first and extremes among them."""
        return read_metrics(job_id, stage=stage, names=names, points=points)

    @answers
    def metrics_as_arrow(
        self,
        job_id: str,
        *,
        stage: str | None = None,
        names: Sequence[str] | None = None,
        points: int = 10_000,
    ) -> "Plan[pyarrow.Table]":
        """`metrics` in the columns stage, name, step, value. Raises Missing without pyarrow."""
        found = yield from read_metrics(job_id, stage=stage, names=names, points=points)
        return as_arrow(metric_rows(found), _METRIC_COLUMNS)

    @answers
    def metrics_as_pandas(
        self,
        job_id: str,
        *,
        stage: str | None = None,
        names: Sequence[str] | None = None,
        points: int = 10_000,
    ) -> "Plan[pandas.DataFrame]":
        """`metrics` in the columns stage, name, step, value. Raises Missing without pandas."""
        found = yield from read_metrics(job_id, stage=stage, names=names, points=points)
        return as_pandas(metric_rows(found), _METRIC_COLUMNS)

    # Last in its class: from here on the name hides Python's own.
    @iterates
    def list(
        self,
        *,
        status: Status | None = None,
        method: str | None = None,
        dataset: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Flow[Job]:
        """Newest first, those for which all that is given holds. method: its type."""
        label = [f"{name}:{value}" for name, value in (labels or {}).items()]
        query = {"status": status, "method": method, "dataset": dataset, "label": label or None}
        return listed(path("jobs"), Job, query=query, limit=limit)


class Jobs(Blocking, JobMethods):
    """Of a Client."""


class AsyncJobs(Awaiting, JobMethods):
    """Of an AsyncClient."""


def _get(job_id: str, wait_seconds: float) -> Call[Job]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", path("jobs", job_id), Job, query=query, held_seconds=wait_seconds)
