"""What follows a run's change of state, each in a transaction of its own."""

from collections.abc import Sequence

from sqlalchemy import select, text, update

from core.advance import advance_job
from core.database import AWAY, Transaction, open_session, open_transaction
from core.evaluating import apply_evaluation, is_evaluation, touch_evaluation
from core.events import write_event
from core.job_rows import jobs_waiting_on, lock_job
from core.states import FINISHED_JOB, LIVE, TERMINAL, DatasetState, JobState, RunState
from core.tables import Artifact, Comparison, Dataset, Run, StageRow


def apply_run(run_id: str) -> None:
    """Carry a run's state to all that it concerns; idempotent, so recovery may call it again.

    A job that cannot be advanced keeps no other from being told: what it raised is raised at the end.
    """
    errors: list[Exception] = []
    left = [run_id]
    for next_id in left:
        left += _apply(next_id, errors)
    if errors:
        raise errors[0]


def _apply(run_id: str, errors: list[Exception]) -> list[str]:
    """Returns the runs that were taken away with it, as those of a job that fails are."""
    with open_transaction() as tx:
        run = tx.session.get_one(Run, run_id)
        if run.kind == "validate_dataset":
            _apply_validation(tx, run)
        elif run.kind == "compare":
            _apply_comparison(tx, run)
        elif is_evaluation(run):
            apply_evaluation(tx, run)
        jobs = jobs_waiting_on(tx, run)
    taken_away: list[str] = []
    failed = len(errors)
    for job_id in jobs:
        try:
            with open_transaction() as tx:
                advance_job(tx, job_id)
        except AWAY:
            raise
        except Exception as error:  # a border: another job's defect
            errors.append(error)
        else:
            taken_away += tx.taken_away
    if len(errors) > failed:
        return taken_away  # it stays unapplied: recovery tries again
    with open_transaction() as tx:
        # Tested anew: a state that came after the one that was just carried over must not be skipped.
        applied = Run.state == run.state, Run.fence == run.fence, Run.state.not_in(LIVE)
        tx.session.execute(update(Run).where(Run.id == run_id, *applied).values(applied=True))
    return taken_away


def report_progress(run_id: str, warnings: Sequence[str] = ()) -> None:
    """Tell every job that shows this run how far it is; in transactions that lock no run."""
    with open_session() as session:
        run = session.get_one(Run, run_id)
        waiting = select(StageRow.job_id, StageRow.name).where(StageRow.run_id == run_id)
        rows = session.execute(waiting.order_by(StageRow.job_id)).all()
    if run.kind == "compare":
        _touch_comparison(run)
    elif is_evaluation(run):
        with open_transaction() as tx:
            touch_evaluation(tx, run, warnings)
    for job_id, stage in rows:
        with open_transaction() as tx:
            job = lock_job(tx, job_id)
            if job is None or job.status in FINISHED_JOB:
                continue
            for message in warnings:
                write_event(tx, job, "stage.warning", message, stage=stage)
            if run.progress is not None:
                data = {**run.progress, "metrics": run.metrics or {}}
                done = f"{stage}: step {run.progress['step']} of {run.progress['total_steps']}"
                write_event(tx, job, "stage.progress", done, stage=stage, data=data)


def unapplied_runs(tx: Transaction, limit: int, after: str = "") -> list[str]:
    """Runs that ended or were paused, unknown to the jobs that wait for them: a process died in between.

    after: the last id of the page before, so that some that always fail keep none from its turn.
    """
    statement = (
        # In the words of the index of these: of a kept plan's states, or of `applied IS false`, Postgres does
        # not know that they imply its condition, and reads every run that there ever was.
        select(Run.id)
        .where(text("NOT applied AND state NOT IN ('queued', 'running')"), Run.id > after)
        .order_by(Run.id)
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


def _touch_comparison(run: Run) -> None:
    with open_transaction() as tx:
        tx.session.execute(
            update(Comparison).where(Comparison.id == run.subject_id).values(progress=run.progress)
        )


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
