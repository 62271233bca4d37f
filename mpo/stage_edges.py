"""Whether stages fit those whose outputs they read, beyond what the outputs are. Torch-free."""

from collections.abc import Callable, Mapping, Sequence

from mpo.config import EvaluateStage, HoldOutStage, ScoreStage, SplitStage
from mpo.spec_places import Place, spec_error
from mpo.stage_graph import STARTS_FROM, PlannedStage, Source
from mpo.training_config import LoRAConfig, TrainingConfig

Makers = Mapping[str, PlannedStage]
PlaceOf = Callable[[PlannedStage, str], Place]
"""Where the spec writes a field of a stage."""


def check_edges(stages: Sequence[PlannedStage], place_of: PlaceOf) -> None:
    """Raises InvalidSpec at the first stage that does not fit what it reads."""
    makers = {stage.name: stage for stage in stages}
    for stage in stages:
        inputs = place_of(stage, "inputs")
        _check_adapter(stage, makers, place_of(stage, "lora"))
        match stage.config:
            case ScoreStage(scheme="cross_fit" | "held_out"):
                _check_folds(stage, makers, inputs)
            case SplitStage():
                _check_split(stage, makers, inputs)
            case EvaluateStage():
                _check_evaluation(stage, makers, inputs)


def _check_adapter(stage: PlannedStage, makers: Makers, place: Place) -> None:
    """An adapter that goes on keeps its shape."""
    lora, base, before = _lora(stage), stage.inputs.get("base"), _maker(_start(stage), makers)
    if lora is None or base is None or before is None or base[0] != base_under(before, makers):
        return
    earlier = _lora(before)
    if earlier is not None and earlier.shape != lora.shape:
        raise spec_error(
            f"differs from lora of {before.name}, whose adapter {stage.name} goes on from: give both the "
            "same, or only one of them",
            place,
        )


def base_under(stage: PlannedStage, makers: Makers) -> Source | None:
    """What an adapter of this stage lies over: the input base, where it starts as that or over it.

    makers: stages by name. What none of them made is taken to be a model of its own.
    """
    start, base = _start(stage), stage.inputs.get("base")
    before = _maker(start, makers)
    over = before is not None and _lora(before) is not None and base == (base_under(before, makers),)
    return base[0] if base and over else start


def adapter_over(base: Source | None, model: Source, makers: Makers) -> LoRAConfig | None:
    """The shape of the adapter that a model is over a base; None where it is none, or no maker is known."""
    maker = _maker(model, makers)
    return _lora(maker) if maker is not None and base_under(maker, makers) == base else None


def _start(stage: PlannedStage) -> Source | None:
    return next((stage.inputs[role][0] for role in STARTS_FROM if role in stage.inputs), None)


def _lora(stage: PlannedStage) -> LoRAConfig | None:
    return stage.config.lora if isinstance(stage.config, TrainingConfig) else None


def _check_folds(stage: PlannedStage, makers: Makers, inputs: Place) -> None:
    for place, model in enumerate(stage.inputs["reward_models"]):
        trained = _maker(model, makers)
        if trained is not None and trained.inputs["data"] != stage.inputs["data"]:
            raise spec_error(
                f"{trained.name} is trained on other pairs than are scored: its folds are not theirs",
                (*inputs, "reward_models", place),
            )


def _check_split(stage: PlannedStage, makers: Makers, inputs: Place) -> None:
    score = _maker(stage.inputs["scores"][0], makers)
    if score is not None and score.inputs["data"] != stage.inputs["data"]:
        raise spec_error(f"these are not the pairs that {score.name} scores: split those", (*inputs, "data"))


def _check_evaluation(stage: PlannedStage, makers: Makers, inputs: Place) -> None:
    data = stage.inputs["data"][0]
    rows = _maker(data, makers)
    if rows is not None and data.output == "eval" and _holds_nothing_out(rows):
        raise spec_error(f"{rows.name} holds nothing out: its fraction is 0", (*inputs, "data"))
    models = stage.inputs["models"]
    for place, model in enumerate(models):
        if model in models[:place]:
            raise spec_error("this model is compared with itself: name it once", (*inputs, "models", place))


def _holds_nothing_out(stage: PlannedStage) -> bool:
    return (
        isinstance(stage.config, HoldOutStage) and stage.config.fraction == 0 and "eval" not in stage.inputs
    )


def _maker(source: Source | None, makers: Makers) -> PlannedStage | None:
    return makers.get(source.name) if source is not None and source.kind == "stage" else None
