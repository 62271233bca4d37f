"""Jobs as the wire shows them, from their rows; a page of jobs takes as many statements as one."""

from collections.abc import Mapping, Sequence

from sqlalchemy import ARRAY, String, bindparam, select
from sqlalchemy.orm import Session, defer

from app.jobs.places import claim_order, is_far_back, queue_places
from app.jobs.planning import sources_of, written_inputs
from app.jobs.progress import job_progress, stage_progress
from app.jobs.schemas import JobError, JobView, Pause, StageError, StageProgress, StageView
from core.states import JobState, RunState, StageState
from core.tables import Job, Run, StageRow

# Built once: an answer spends more time on making a statement than on sending it.
_STAGES = (
    select(StageRow)
    .where(StageRow.job_id == bindparam("jobs", type_=ARRAY(String)).any_())
    .order_by(StageRow.position)
)
_RUNS = (
    select(Run)
    .where(Run.id == bindparam("ids", type_=ARRAY(String)).any_())
    # Long, and shown by no view of a job.
    .options(defer(Run.log), defer(Run.config), defer(Run.inputs))
)


def job_view(session: Session, job: Job, places: Mapping[str, int] | None = None) -> JobView:
    """One job. places: in the queue, of its runs, where they are at hand."""
    return _views(session, [job], _stages_of([job], session), None, places)[0]


def job_views(
    session: Session, jobs: Sequence[Job], places: Mapping[str, int] | None = None
) -> list[JobView]:
    """Several jobs, in the given order. places: in the queue, of their runs, where they are at hand."""
    return _views(session, jobs, _stages_of(jobs, session), None, places)


def new_job_views(
    session: Session, new: Sequence[tuple[Job, list[StageRow]]], runs: Mapping[str, Run]
) -> list[JobView]:
    """Jobs that this transaction has made, from their rows. runs: of their stages."""
    by_job = {job.id: stages for job, stages in new}
    return _views(session, [job for job, _ in new], by_job, runs)


def _stages_of(jobs: Sequence[Job], session: Session) -> dict[str, list[StageRow]]:
    by_job: dict[str, list[StageRow]] = {job.id: [] for job in jobs}
    for stage in session.scalars(_STAGES, {"jobs": list(by_job)}):
        by_job[stage.job_id].append(stage)
    return by_job


def _views(
    session: Session,
    jobs: Sequence[Job],
    by_job: Mapping[str, list[StageRow]],
    runs: Mapping[str, Run] | None = None,
    places: Mapping[str, int] | None = None,
) -> list[JobView]:
    if runs is None:
        runs = _runs_of(session, by_job)
    first_queued = {job.id: _first_queued(by_job[job.id], runs) for job in jobs}
    if places is None:
        waiting = [run for run in first_queued.values() if run is not None and not is_far_back(run)]
        places = queue_places(session, [run.id for run in waiting])
    return [
        _view(job, by_job[job.id], runs, places.get(run.id) if (run := first_queued[job.id]) else None)
        for job in jobs
    ]


def _runs_of(session: Session, by_job: Mapping[str, list[StageRow]]) -> dict[str, Run]:
    run_ids = sorted({s.run_id for stages in by_job.values() for s in stages if s.run_id is not None})
    return {run.id: run for run in session.scalars(_RUNS, {"ids": run_ids})} if run_ids else {}


def _first_queued(stages: Sequence[StageRow], runs: Mapping[str, Run]) -> Run | None:
    waited = [runs.get(s.run_id or "") for s in stages if s.status == StageState.QUEUED]
    queued = [run for run in waited if run is not None and run.state == RunState.QUEUED]
    return min(queued, key=claim_order, default=None)


def _view(job: Job, stages: list[StageRow], runs: Mapping[str, Run], position: int | None) -> JobView:
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
