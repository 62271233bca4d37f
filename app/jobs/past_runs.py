"""How much longer or shorter stages really took than was assumed: from runs of the same owner."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import median
from threading import Lock
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.jobs.estimating import StageCost, stage_costs
from app.jobs.leaves import Leaves
from app.jobs.planning import planned_stages
from core.states import DatasetState
from core.tables import Artifact, BaseModelRow, Dataset, JobInput, Run, StageRow
from mpo.plan import Source

NEWEST_ARTIFACTS, JOBS_READ, RUNS_A_KIND = 200, 3, 3


@dataclass(frozen=True)
class PastRun:
    """A run that was measured. factor: its seconds over those assumed for it."""

    kind: str
    hardware: str
    parameters: int
    factor: float


def past_runs(session: Session, owner: str) -> list[PastRun]:
    """The owner's newest runs that ended in their first attempt, newest first, of a few jobs."""
    jobs: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in _measured(session, owner):
        jobs[row.job_id].append(row)
    found: list[PastRun] = []
    for job_id in list(jobs)[:JOBS_READ]:
        costs = _costs_by_key(session, owner, job_id)
        for row in jobs[job_id]:
            cost = costs.get(row.key)
            if cost is not None and cost.assumed_seconds:
                factor = row.wall_seconds / cost.assumed_seconds
                found.append(PastRun(row.kind, row.hardware, cost.parameters, factor))
    return found


def factor_for(kind: str, parameters: int, runs: Iterable[PastRun]) -> float | None:
    """What assumed seconds of a kind are multiplied by: the median of the runs nearest in size, on the
    hardware that did the newest one. None where there is none."""
    alike = [run for run in runs if run.kind == kind]
    if not alike:
        return None
    alike = [run for run in alike if run.hardware == alike[0].hardware]
    alike.sort(key=lambda run: abs(log(max(1, run.parameters) / max(1, parameters))))
    return median(run.factor for run in alike[:RUNS_A_KIND])


def _measured(session: Session, owner: str) -> Sequence[Row[Any]]:
    # A later attempt goes on from a checkpoint: its seconds are not the whole stage's.
    statement = (
        select(Artifact.job_id, Artifact.key, Artifact.kind, Artifact.hardware, Artifact.wall_seconds)
        .join(Run, Run.id == Artifact.run_id)
        .where(Artifact.owner == owner, Artifact.job_id.is_not(None), Run.fence == 1, Run.kind != "compare")
        .order_by(Artifact.id.desc())
        .limit(NEWEST_ARTIFACTS)
    )
    rows: dict[tuple[Any, ...], Any] = {}
    for row in session.execute(statement):
        rows.setdefault((row.job_id, row.key), row)
    return list(rows.values())


_known: dict[str, Mapping[str, StageCost]] = {}
"""Costs by job and key, of jobs whose plan has been read: a key's cost never changes."""
_lock = Lock()


def _costs_by_key(session: Session, owner: str, job_id: str) -> Mapping[str, StageCost]:
    rows = list(
        session.scalars(select(StageRow).where(StageRow.job_id == job_id).order_by(StageRow.position))
    )
    keys = {row.name: row.key for row in rows}
    known = _known.get(job_id)
    if known is not None and set(keys.values()) <= known.keys():
        return known
    leaves = _leaves(session, job_id)
    if leaves is None:
        return {}
    try:
        costs = stage_costs(session, owner, planned_stages(rows), leaves, keys)
    except (OSError, ValidationError):  # its rows have gone, or an older version wrote its stages
        return {}
    by_key = {keys[name]: cost for name, cost in costs.items()}
    if all(cost.assumed_seconds is not None for cost in costs.values()):
        with _lock:
            if len(_known) > 100:
                _known.clear()
            _known[job_id] = by_key
    return by_key


def _leaves(session: Session, job_id: str) -> Leaves | None:
    """The datasets and base models of a job; None where one has gone, or is a trained model."""
    leaves = Leaves()
    for leaf in session.scalars(select(JobInput).where(JobInput.job_id == job_id)):
        if leaf.kind == "dataset":
            dataset = session.get(Dataset, leaf.name)
            if dataset is None or dataset.deleted_at is not None or dataset.status != DatasetState.READY:
                return None
            leaves.datasets[Source.dataset(leaf.name)] = dataset
        else:
            base = session.get(BaseModelRow, leaf.name)
            if base is None or base.deleted_at is not None:
                return None
            leaves.models[Source.model(leaf.name)] = base
    return leaves
