"""Use cases of evaluations."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.evaluations.planning import SETTINGS, STAGE, plan_evaluation
from app.evaluations.queries import SINGLE_ROLES
from app.evaluations.schemas import EvaluationCreate, EvaluationProgress, EvaluationView
from app.ownership import find_owned
from app.single_runs import cancel_with_run
from core import queue
from core.database import Transaction
from core.errors import Conflict
from core.ids import new_id
from core.states import JobState
from core.tables import Artifact, Evaluation
from core.work_items import NewRun
from mpo.plan import RANK


class EvaluationFinished(Conflict):
    """The evaluation has ended already."""

    code = "evaluation_finished"


class NoSamples(Conflict):
    """The evaluation has not succeeded: samples are written with the report."""

    code, title = "not_finished", "The evaluation has no samples"


def create_evaluation(tx: Transaction, owner: str, body: EvaluationCreate) -> str:
    """Queue an evaluation; returns its id. Raises Unprocessable, NoContent, DatasetNotReady."""
    planned = plan_evaluation(tx, owner, body)
    config = planned.config
    settings = config.model_dump(mode="json", include=set(SETTINGS))
    named = {role: getattr(body, role) for role in (*SINGLE_ROLES, "dataset", "seed")}
    evaluation = Evaluation(
        id=new_id("evaluation"),
        owner=owner,
        models=list(body.models),
        request={**named, **settings},
        warnings=planned.warnings,
    )
    evaluation.run_id = queue.enqueue(
        tx,
        NewRun(
            kind=config.kind,
            slot=config.slot,
            owner=owner,
            subject_id=evaluation.id,
            config=config.model_dump(mode="json"),
            inputs=planned.inputs,
            seed=body.seed,
            # Among equals jobs go on first, as with their own evaluations.
            rank=RANK.index(STAGE),
        ),
    )
    tx.session.add(evaluation)
    tx.session.flush()
    return evaluation.id


def read_evaluation(session: Session, owner: str, evaluation_id: str) -> EvaluationView:
    """An evaluation as it is now."""
    return evaluation_view(find_owned(session, Evaluation, owner, evaluation_id))


def evaluation_view(evaluation: Evaluation) -> EvaluationView:
    """An evaluation from its row alone."""
    return EvaluationView(
        **evaluation.request,
        id=evaluation.id,
        status=JobState(evaluation.status),
        models=evaluation.models,
        progress=EvaluationProgress.model_validate(evaluation.progress or {}),
        warnings=evaluation.warnings,
        report=evaluation.report,
        error=evaluation.error,
        run_id=evaluation.run_id,
        created_at=evaluation.created_at,
        started_at=evaluation.started_at,
        finished_at=evaluation.finished_at,
    )


def cancel_evaluation(tx: Transaction, owner: str, evaluation_id: str) -> None:
    """End an evaluation. Raises NotFound, EvaluationFinished; a second time nothing happens."""
    cancel_with_run(tx, Evaluation, owner, evaluation_id, EvaluationFinished)


def samples_location(session: Session, owner: str, evaluation_id: str) -> str:
    """Where the samples lie in the store. Raises NotFound, NoSamples."""
    evaluation = find_owned(session, Evaluation, owner, evaluation_id)
    kept = Artifact.run_id == evaluation.run_id, Artifact.output == "samples", Artifact.deleted_at.is_(None)
    location = session.scalar(select(Artifact.location).where(*kept))
    if evaluation.status != JobState.SUCCEEDED or location is None:
        raise NoSamples(f"The evaluation is {evaluation.status}: its samples come with its report")
    return location
