"""What a job's stages reported by step, thinned to as many points as a chart needs."""

from collections.abc import Iterable, Sequence

from mpo_client.calls import Call, Plan, Reply, path, send
from mpo_client.tables import Rows


class MetricSeries(Reply):
    """One metric of one stage by step; null where its value was no number."""

    stage: str
    name: str
    steps: list[int]
    values: list[float | None]


class _Metrics(Reply):
    data: list[MetricSeries]


def read_metrics(
    job_id: str, *, stage: str | None, names: Sequence[str] | None, points: int
) -> Plan[list[MetricSeries]]:
    query = {"stage": stage, "names": [*names] if names else None, "points": points}
    found = yield from send(Call("GET", path("jobs", job_id, "metrics"), _Metrics, query=query))
    return found.data


def metric_rows(series: Iterable[MetricSeries]) -> Rows:
    """A row a step of each series."""
    return [
        {"stage": each.stage, "name": each.name, "step": step, "value": value}
        for each in series
        for step, value in zip(each.steps, each.values, strict=True)
    ]
