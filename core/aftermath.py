"""What follows a run's change of state, each in a transaction of its own."""

from sqlalchemy import select, update

from core.advance import advance_job, jobs_waiting_on
from core.database import Transaction, open_transaction
from core.states import TERMINAL, DatasetState, JobState, RunState
from core.tables import Artifact, Comparison, Dataset, Run


def apply_run(run_id: str) -> None:
    """Carry a run's state to all that it concerns; idempotent, so recovery may call it again."""
    with open_transaction() as tx:
        run = tx.session.get_one(Run, run_id)
        if run.kind == "validate_dataset":
            _apply_validation(tx, run)
        elif run.kind == "compare":
            _apply_comparison(tx, run)
        jobs = jobs_waiting_on(tx, run)
    for job_id in jobs:
        with open_transaction() as tx:
            advance_job(tx, job_id)
    with open_transaction() as tx:
        # Tested anew: a state that came after the one that was just carried over must not be skipped.
        applied = Run.state == run.state, Run.fence == run.fence, Run.state.in_(TERMINAL)
        tx.session.execute(update(Run).where(Run.id == run_id, *applied).values(applied=True))


def unapplied_runs(tx: Transaction, limit: int) -> list[str]:
    """Finished runs whose end has not reached their jobs: their worker died in between."""
    statement = (
        select(Run.id)
        .where(Run.finished_at.is_not(None), Run.applied.is_(False))
        .order_by(Run.finished_at)
        .limit(limit)
    )
    return list(tx.session.scalars(statement))


def _apply_validation(tx: Transaction, run: Run) -> None:
    if run.state not in TERMINAL:
        return
    dataset = tx.session.get_one(Dataset, run.subject_id, with_for_update=True)
    if dataset.status != DatasetState.VALIDATING:
        return
    summary = run.summary or (run.error or {}).get("report") or {}
    dataset.report = summary or None
    dataset.rows, dataset.bad_rows = summary.get("rows"), summary.get("bad_rows")
    dataset.format = summary.get("format")
    rows = tx.session.scalar(select(Artifact).where(Artifact.run_id == run.id, Artifact.output == "rows"))
    if run.state == RunState.SUCCEEDED and rows is not None:
        dataset.status = DatasetState.READY
        dataset.rows_location, dataset.rows_sha256 = rows.location, rows.sha256
    else:
        error = run.error or {"code": "cancelled", "message": "Validation was cancelled"}
        dataset.status = DatasetState.INVALID
        dataset.error = {"code": error["code"], "message": error["message"]}


def _apply_comparison(tx: Transaction, run: Run) -> None:
    comparison = tx.session.get_one(Comparison, run.subject_id, with_for_update=True)
    if comparison.finished_at is not None:
        return
    if run.state in (RunState.QUEUED, RunState.RUNNING):
        comparison.status = JobState(run.state)
        return
    comparison.status, comparison.finished_at = JobState(run.state), run.finished_at
    if run.state == RunState.SUCCEEDED and run.summary:
        comparison.win_rates = run.summary["win_rates"]
    if run.state == RunState.FAILED and run.error:
        comparison.error = {"code": run.error["code"], "message": run.error["message"]}
