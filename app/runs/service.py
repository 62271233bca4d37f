"""Reading runs."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.runs.schemas import RunError, RunView, Try
from core.errors import NotFound
from core.tables import Artifact, Run


def find_run(session: Session, owner: str, run_id: str) -> Run:
    """The caller's run; raises NotFound."""
    run = session.scalar(select(Run).where(Run.id == run_id, Run.owner == owner))
    if run is None:
        raise NotFound(f"There is no run {run_id}")
    return run


def read_run(session: Session, owner: str, run_id: str) -> RunView:
    """A run as it is now."""
    run = find_run(session, owner, run_id)
    kept = Artifact.run_id == run.id, Artifact.deleted_at.is_(None)
    made = session.execute(select(Artifact.output, Artifact.id).where(*kept))
    return RunView(
        id=run.id,
        kind=run.kind,
        status=run.state,
        slot=run.slot,
        job=run.job_id,
        subject=run.subject_id,
        key=run.key,
        config=run.config,
        seed=run.seed,
        priority=run.priority,
        attempt=run.attempt,
        crashes_without_progress=run.crashes_without_progress,
        leases_lost_without_progress=run.leases_lost_without_progress,
        attempts=[_try(other) for other in _same_work(session, run)],
        worker=run.worker_id,
        checkpoint_step=run.checkpoint["step"] if run.checkpoint else None,
        progress=run.progress,
        metrics=run.metrics,
        summary=run.summary,
        artifacts=dict(made.all()),
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        error=_error(run),
    )


def read_log(session: Session, owner: str, run_id: str) -> str:
    """The end of what the run's process printed."""
    return find_run(session, owner, run_id).log


def _same_work(session: Session, run: Run) -> list[Run]:
    if run.key is None:
        return [run]
    same = Run.owner == run.owner, Run.key == run.key
    return list(session.scalars(select(Run).where(*same).order_by(Run.id)))


def _try(run: Run) -> Try:
    return Try(
        run_id=run.id,
        status=run.state,
        attempt=run.attempt,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        error=_error(run),
    )


def _error(run: Run) -> RunError | None:
    return RunError.model_validate(run.error) if run.error else None
