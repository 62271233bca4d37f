"""How far stages and jobs have come, and how long what is left may take.

All of it is told from rows alone, never from the clock: what has not changed keeps its ETag.
"""

from collections.abc import Sequence

from app.jobs.schemas import Progress, StageProgress
from core.states import JobState, StageState
from core.tables import Job, Run, StageRow

WEIGHTS = {
    "hold_out": 1.0,
    "sft": 20.0,
    "reward_model": 20.0,
    "score": 8.0,
    "split": 1.0,
    "dpo": 25.0,
    "ppo": 80.0,
    "evaluate": 20.0,
}
"""Shares of a job's time by kind of stage: rough, and corrected by what its stages have taken so far."""


def stage_progress(stage: StageRow, run: Run | None) -> StageProgress:
    """What the stage's run reported last."""
    reported = (run.progress if run else None) or {}
    step, total = int(reported.get("step", 0)), reported.get("total_steps")
    if stage.status == StageState.SUCCEEDED:
        return StageProgress(step=step, total_steps=total, fraction=1.0, eta_seconds=0.0)
    fraction = min(1.0, step / total) if total else 0.0
    eta = reported.get("eta_seconds") if stage.status == StageState.RUNNING else None
    return StageProgress(step=step, total_steps=total, fraction=fraction, eta_seconds=eta)


def job_progress(job: Job, stages: Sequence[tuple[StageRow, StageProgress]]) -> Progress:
    """The weighted mean of the stages; seconds left at the pace of those that ran, null before any did."""
    if job.status == JobState.SUCCEEDED:
        return Progress(fraction=1.0, eta_seconds=0.0)
    total = sum(_weight(stage) for stage, _ in stages)
    done = sum(_weight(stage) * progress.fraction for stage, progress in stages)
    over = job.status in (JobState.FAILED, JobState.CANCELLED)
    pace = None if over else _seconds_a_weight(stages)
    eta = None if pace is None else round(sum(_seconds_left(s, p, pace) for s, p in stages), 1)
    return Progress(fraction=round(done / total, 4) if total else 0.0, eta_seconds=eta)


def _seconds_a_weight(stages: Sequence[tuple[StageRow, StageProgress]]) -> float | None:
    known = [(_weight(s), took) for s, p in stages if (took := _duration(s, p)) is not None]
    weight = sum(w for w, _ in known)
    return sum(took for _, took in known) / weight if weight else None


def _duration(stage: StageRow, progress: StageProgress) -> float | None:
    """Seconds that a stage took, or will have taken as far as is known; null where it ran elsewhere."""
    if stage.cached:
        return None
    if stage.finished_at is not None and stage.started_at is not None:
        return (stage.finished_at - stage.started_at).total_seconds()
    if progress.eta_seconds is not None and progress.fraction < 1:
        return progress.eta_seconds / (1 - progress.fraction)
    return None


def _seconds_left(stage: StageRow, progress: StageProgress, pace: float) -> float:
    if progress.eta_seconds is not None:
        return progress.eta_seconds
    return _weight(stage) * (1 - progress.fraction) * pace


def _weight(stage: StageRow) -> float:
    return WEIGHTS.get(stage.kind, 1.0)
