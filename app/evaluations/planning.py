"""What an evaluation is asked to do, as the stage that does it: its inputs found, its lengths resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.datasets.service import DatasetNotReady
from app.evaluations.queries import SINGLE_ROLES
from app.evaluations.schemas import EvaluationCreate
from app.jobs.leaves import Leaves, Loc, find_leaves, refuse_unusable
from app.models.lineage import TrainedOn, reward_models_behind, trained_on
from core.database import Transaction
from core.errors import Unprocessable
from core.states import DatasetState
from core.work_lookup import artifact_input, base_input, rows_input
from mpo.config import EvaluateStage, EvaluationSettings
from mpo.evaluation_plan import NO_CLAIM, input_names
from mpo.lengths import LengthsExceedContext, resolve_lengths
from mpo.plan import PlannedStage, Source
from mpo.roles import WrongInput, check_inputs, training_role
from mpo.training_config import TokenLimits

STAGE = "evaluate"
SETTINGS = (*EvaluationSettings.model_fields, *TokenLimits.model_fields)
"""What request and stage share."""

Inputs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class PlannedEvaluation:
    """config, inputs: of the run. warnings: what is known before it begins."""

    config: EvaluateStage
    inputs: Inputs
    warnings: list[str]


def plan_evaluation(tx: Transaction, owner: str, body: EvaluationCreate) -> PlannedEvaluation:
    """The stage that was asked for, what it reads held until the evaluation's row is there.

    Raises Unprocessable naming the field, NoContent, DatasetNotReady.
    """
    stage = _stage(body)
    leaves = find_leaves(tx, owner, _places(stage))
    _check(stage, leaves)
    stage = replace(stage, config=_resolved(stage, leaves))
    known = [trained_on(tx, name) for name in body.models]
    config = _settled(body, known, trained_on(tx, body.judge), stage)
    inputs = {role: [_input(leaves, source) for source in sources] for role, sources in stage.inputs.items()}
    for number, data in enumerate(known):
        if data is not None and not data.gone:
            inputs[training_role(number)] = list(data.rows.values())
    return PlannedEvaluation(config, inputs, _warnings(tx, owner, body, inputs["judge"][0]["sha256"]))


def _stage(body: EvaluationCreate) -> PlannedStage:
    named = {role: name for role in SINGLE_ROLES if (name := getattr(body, role)) is not None}
    inputs = {
        "models": tuple(Source.model(name) for name in body.models),
        **{role: (Source.model(name),) for role, name in named.items()},
        "data": (Source.dataset(body.dataset),),
    }
    config = EvaluateStage(**{name: getattr(body, name) for name in SETTINGS})
    return PlannedStage(STAGE, config, inputs, body.seed)


def _places(stage: PlannedStage) -> Mapping[Source, Loc]:
    """Where each input is first named."""
    found: dict[Source, Loc] = {}
    for role, sources in stage.inputs.items():
        for place, source in enumerate(sources):
            found.setdefault(source, _loc(role, place))
    return found


def _loc(role: str, place: int) -> Loc:
    if role == "models":
        return ("body", role, place)
    return ("body", "dataset" if role == "data" else role)


def _check(stage: PlannedStage, leaves: Leaves) -> None:
    try:
        check_inputs([stage], leaves.things)
    except WrongInput as error:
        raise Unprocessable(error.detail, loc=_loc(error.role, error.place)) from error
    (dataset,) = leaves.datasets.values()
    loc = _loc("data", 0)
    if dataset.status == DatasetState.INVALID:
        raise Unprocessable("should be a valid dataset of preference pairs", loc=loc)
    refuse_unusable(leaves, [stage], {STAGE: loc})
    if dataset.status != DatasetState.READY:
        raise DatasetNotReady(f"{dataset.id} is still validated: try again when it is ready")


def _resolved(stage: PlannedStage, leaves: Leaves) -> EvaluateStage:
    assert isinstance(stage.config, EvaluateStage)
    try:
        return resolve_lengths(stage.config, min(leaves.contexts().values()))
    except LengthsExceedContext as error:
        raise Unprocessable(str(error), loc=("body", error.field)) from error


def _settled(
    body: EvaluationCreate, models: list[TrainedOn | None], judge: TrainedOn | None, stage: PlannedStage
) -> EvaluateStage:
    """The configuration with what lineage tells of the judge, and the inputs' names. Raises Unprocessable."""
    claimed, found = body.judge_independence, _independence(models, judge)
    if claimed not in (NO_CLAIM, found) and not (claimed == "other_data" and found is None):
        told = f"lineage tells {found or NO_CLAIM}: leave this out, or give a judge of other data"
        raise Unprocessable(told, loc=("body", "judge_independence"))
    assert isinstance(stage.config, EvaluateStage)
    known = {"judge_independence": found or claimed, "names": input_names(stage)}
    return stage.config.model_copy(update=known)


def _independence(models: list[TrainedOn | None], judge: TrainedOn | None) -> str | None:
    """other_data where judge and models share no upload; None where nobody here knows of one of them."""
    if judge is None or not judge.datasets or any(data is None or not data.datasets for data in models):
        return None
    seen = set[str]().union(*(data.datasets for data in models if data is not None))
    return "other_seed" if judge.datasets & seen else "other_data"


def _input(leaves: Leaves, source: Source) -> dict[str, Any]:
    if source.kind == "dataset":
        return rows_input(leaves.datasets[source])
    if source in leaves.artifacts:
        return artifact_input(source.name, leaves.artifacts[source])
    return base_input(leaves.models[source])


def _warnings(tx: Transaction, owner: str, body: EvaluationCreate, judge: str) -> list[str]:
    """judge: its digest. That it is the request's own reward model, the stage says itself."""
    if body.judge == body.reward_model:
        return []
    pleased = [name for name in body.models if judge in reward_models_behind(tx, owner, name)]
    return [
        f"The judge is the reward model that {name} was trained against: its verdict is no evidence."
        for name in pleased
    ]
