"""How far stages and jobs have come, and how long what is left may take."""

from collections.abc import Sequence
from datetime import UTC, datetime

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
    """A stage's own progress; the estimate assumes that steps go on at the pace so far."""
    reported = (run.progress if run else None) or {}
    step, total = int(reported.get("step") or 0), reported.get("total_steps")
    if stage.status == StageState.SUCCEEDED:
        return StageProgress(step=step, total_steps=total, fraction=1.0, eta_seconds=0.0)
    fraction = min(1.0, step / total) if total else 0.0
    eta = None
    if stage.status == StageState.RUNNING and 0 < fraction:
        eta = round(_elapsed(stage) * (1 - fraction) / fraction, 1)
    return StageProgress(step=step, total_steps=total, fraction=fraction, eta_seconds=eta)


def job_progress(job: Job, stages: Sequence[tuple[StageRow, StageProgress]]) -> Progress:
    """The weighted mean of the stages; seconds left from the pace of those that ran, null before any did."""
    if job.status == JobState.SUCCEEDED:
        return Progress(fraction=1.0, eta_seconds=0.0)
    total = sum(_weight(stage) for stage, _ in stages)
    done = sum(_weight(stage) * progress.fraction for stage, progress in stages)
    fraction = done / total if total else 0.0
    if job.status in (JobState.FAILED, JobState.CANCELLED):
        return Progress(fraction=fraction, eta_seconds=None)
    paced = [(s, p) for s, p in stages if not s.cached and s.started_at is not None and p.fraction > 0]
    pace_weight = sum(_weight(stage) * progress.fraction for stage, progress in paced)
    if not pace_weight:
        return Progress(fraction=fraction, eta_seconds=None)
    seconds = sum(_elapsed(stage) for stage, _ in paced) * (total - done) / pace_weight
    return Progress(fraction=fraction, eta_seconds=round(seconds, 1))


def _weight(stage: StageRow) -> float:
    return WEIGHTS.get(stage.kind, 1.0)


def _elapsed(stage: StageRow) -> float:
    end = stage.finished_at or datetime.now(UTC)
    return max(0.0, (end - stage.started_at).total_seconds()) if stage.started_at else 0.0
