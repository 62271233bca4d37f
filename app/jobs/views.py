"""Jobs as the wire shows them, from their rows; a page of jobs takes as many statements as one."""

from collections.abc import Sequence

from sqlalchemy import and_, func, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from app.jobs.planning import sources_of, written_inputs
from app.jobs.progress import job_progress, stage_progress
from app.jobs.schemas import JobError, JobView, Pause, StageError, StageProgress, StageView
from core.states import JobState, RunState, StageState
from core.tables import Job, Run, StageRow


def job_view(session: Session, job: Job) -> JobView:
    """One job."""
    return job_views(session, [job])[0]


def job_views(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    """Several jobs, in the given order."""
    by_job: dict[str, list[StageRow]] = {job.id: [] for job in jobs}
    statement = select(StageRow).where(StageRow.job_id.in_(by_job)).order_by(StageRow.position)
    for stage in session.scalars(statement):
        by_job[stage.job_id].append(stage)
    run_ids = {s.run_id for stages in by_job.values() for s in stages if s.run_id is not None}
    runs = {run.id: run for run in session.scalars(select(Run).where(Run.id.in_(run_ids)))}
    first_queued = {job.id: _first_queued(by_job[job.id], runs) for job in jobs}
    positions = queue_positions(session, [run.id for run in first_queued.values() if run is not None])
    return [
        _view(job, by_job[job.id], runs, positions.get(run.id) if (run := first_queued[job.id]) else None)
        for job in jobs
    ]


def queue_positions(session: Session, run_ids: Sequence[str]) -> dict[str, int]:
    """Place, from 1, of each queued run among the queued runs of its slot class, in the order of claims."""
    if not run_ids:
        return {}
    other = aliased(Run)
    before = (
        select(func.count())
        .where(
            other.state == RunState.QUEUED,
            other.slot == Run.slot,
            or_(
                other.priority > Run.priority,
                and_(
                    other.priority == Run.priority,
                    tuple_(other.age, other.rank, other.id) < tuple_(Run.age, Run.rank, Run.id),
                ),
            ),
        )
        .correlate(Run)
        .scalar_subquery()
    )
    statement = select(Run.id, before).where(Run.id.in_(run_ids), Run.state == RunState.QUEUED)
    return {run_id: count + 1 for run_id, count in session.execute(statement)}


def _first_queued(stages: Sequence[StageRow], runs: dict[str, Run]) -> Run | None:
    queued = [runs[s.run_id] for s in stages if s.run_id in runs and s.status == StageState.QUEUED]
    queued = [run for run in queued if run.state == RunState.QUEUED]
    return min(queued, key=lambda run: (-run.priority, run.age, run.rank, run.id), default=None)


def _view(job: Job, stages: list[StageRow], runs: dict[str, Run], position: int | None) -> JobView:
    of_stage = {stage.name: runs.get(stage.run_id) if stage.run_id else None for stage in stages}
    progress = [(stage, stage_progress(stage, of_stage[stage.name])) for stage in stages]
    return JobView(
        id=job.id,
        name=job.name,
        status=JobState(job.status),
        model=job.model,
        dataset=job.dataset_id,
        eval_dataset=job.eval_dataset_id,
        method=job.method,
        pause_after=job.pause_after,
        seed=job.seed,
        priority=job.priority,
        labels=job.labels,
        stages=[_stage_view(stage, of_stage[stage.name], come) for stage, come in progress],
        models={s.name: f"{job.id}:{s.name}" for s in stages if "model" in s.artifacts},
        queue_position=position,
        pause=Pause.model_validate(job.pause) if job.pause else None,
        progress=job_progress(job, progress),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=JobError.model_validate(job.error) if job.error else None,
    )


def _stage_view(stage: StageRow, run: Run | None, progress: StageProgress) -> StageView:
    return StageView(
        name=stage.name,
        kind=stage.kind,
        status=StageState(stage.status),
        cached=stage.cached,
        run_id=stage.run_id,
        attempt=run.attempt if run else None,
        progress=progress,
        metrics=(run.metrics if run else None) or {},
        summary=stage.summary,
        artifacts=stage.artifacts,
        config=stage.config,
        inputs=written_inputs(stage.kind, sources_of(stage)),
        seed=stage.seed,
        started_at=stage.started_at,
        finished_at=stage.finished_at,
        error=StageError.model_validate(stage.error) if stage.error else None,
    )
