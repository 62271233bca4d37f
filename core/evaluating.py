"""How an evaluation outside of a job follows its run."""

from collections.abc import Sequence

from core.database import Transaction
from core.states import LIVE, JobState, RunState
from core.tables import Evaluation, Run


def is_evaluation(run: Run) -> bool:
    """Whether the run's subject is an evaluation: a job's stage of that kind is a run of its job."""
    return run.kind == "evaluate" and run.job_id is None


def touch_evaluation(tx: Transaction, run: Run, warnings: Sequence[str]) -> None:
    """Write how far the run is and what it warns of; what a later attempt says again stands there once."""
    evaluation = tx.session.get_one(Evaluation, run.subject_id, with_for_update=True)
    if evaluation.finished_at is not None:
        return
    if run.progress is not None:
        evaluation.progress = run.progress
    new = [warning for warning in warnings if warning not in evaluation.warnings]
    if new:
        evaluation.warnings = [*evaluation.warnings, *dict.fromkeys(new)]


def apply_evaluation(tx: Transaction, run: Run) -> None:
    """Carry the run's state over, and what it ended with; one that has ended stays as it is."""
    evaluation = tx.session.get_one(Evaluation, run.subject_id, with_for_update=True)
    if evaluation.finished_at is not None:
        return
    evaluation.status, evaluation.started_at = JobState(run.state), run.started_at
    if run.progress is not None:
        evaluation.progress = run.progress
    if run.state in (*LIVE, RunState.PAUSED):
        return
    evaluation.finished_at = run.finished_at
    if run.state == RunState.SUCCEEDED:
        evaluation.report = run.summary
    if run.state == RunState.FAILED and run.error:
        evaluation.error = {"code": run.error["code"], "message": run.error["message"]}
