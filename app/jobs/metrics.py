"""What a job's stages reported by step, thinned for a chart."""

from collections.abc import Sequence
from math import isfinite

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.schemas import MetricList, MetricSeries
from app.jobs.service import find_job
from core.errors import Unprocessable
from core.tables import Metric, Run, StageRow

Values = dict[str, float]


def read_metrics(
    session: Session, owner: str, job_id: str, *, stage: str | None, names: Sequence[str], points: int
) -> MetricList:
    """Every metric of every stage, or of one stage, or those named; at most `points` steps of each."""
    job = find_job(session, owner, job_id)
    rows = session.scalars(select(StageRow).where(StageRow.job_id == job.id).order_by(StageRow.position))
    stages = list(rows)
    if stage is not None and stage not in {row.name for row in stages}:
        known = ", ".join(row.name for row in stages)
        raise Unprocessable(
            f"stage names no stage of this job: its stages are {known}", loc=("query", "stage")
        )
    series = [
        made
        for row in stages
        if stage in (None, row.name)
        for made in _series(row.name, _steps_of(session, owner, row), names, points)
    ]
    return MetricList(data=series)


def thinned(values: Sequence[float | None], points: int) -> list[int]:
    """At most `points` indices: of the last, first, largest and smallest, then evenly spread ones."""
    count = len(values)
    if count <= points:
        return list(range(count))
    numbers = [i for i, value in enumerate(values) if value is not None and isfinite(value)]
    extremes = [pick(numbers, key=lambda i: values[i] or 0.0) for pick in (max, min) if numbers]
    kept = dict.fromkeys([count - 1, 0, *extremes][:points])
    spread = points - len(kept)
    kept |= dict.fromkeys(round((i + 1) * (count - 1) / (spread + 1)) for i in range(spread))
    return sorted(kept)


def _steps_of(session: Session, owner: str, stage: StageRow) -> dict[int, Values]:
    """A stage's metrics by step. A run that went on from an earlier run's checkpoint has its steps before."""
    if stage.run_id is None:
        return {}
    same_work = Run.owner == owner, Run.key == stage.key, Run.id <= stage.run_id
    runs = session.execute(select(Run.id, Run.checkpoint).where(*same_work).order_by(Run.id.desc())).all()
    steps: dict[int, Values] = {}
    for run_id, checkpoint in runs:
        found = select(Metric.step, Metric.values).where(Metric.run_id == run_id)
        if steps:
            found = found.where(Metric.step < min(steps))
        elif run_id != stage.run_id:
            # The newest run has reported nothing yet: what it starts from is all that there is.
            found = found.where(Metric.step <= (checkpoint or {}).get("step", 0))
        steps.update(dict(session.execute(found).all()))
    return dict(sorted(steps.items()))


def _series(stage: str, steps: dict[int, Values], names: Sequence[str], points: int) -> list[MetricSeries]:
    present = list(dict.fromkeys(name for values in steps.values() for name in values))
    found = []
    for name in present if not names else [name for name in names if name in present]:
        has_it = [step for step, values in steps.items() if name in values]
        shown = [has_it[i] for i in thinned([steps[step][name] for step in has_it], points)]
        values = [steps[step][name] for step in shown]
        found.append(MetricSeries(stage=stage, name=name, steps=shown, values=values))
    return found
