"""What every field of every stage's configuration refuses."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from mpo.config import EvaluateStage, PPOStage, SFTStage, Stage
from mpo.training_config import StageConfig

STAGES: tuple[type[StageConfig], ...] = get_args(get_args(Stage)[0])
Field = tuple[str, ...]


def types_in(annotation: object) -> Iterator[object]:
    yield annotation
    for argument in get_args(annotation):
        yield from types_in(argument)


def numbers(model: type[BaseModel], kind: type) -> Iterator[tuple[Field, bool]]:
    """Fields of a model, also of models in it, that hold such numbers; and whether in a list."""
    for name, field in model.model_fields.items():
        inner = set(types_in(field.annotation))
        if kind in inner:
            yield (name,), any(getattr(found, "__origin__", None) is list for found in inner)
        for found in inner:
            if isinstance(found, type) and issubclass(found, BaseModel):
                yield from (((name, *path), listed) for path, listed in numbers(found, kind))


def fields(kind: type) -> list[Any]:
    return [
        pytest.param(stage, path, listed, id=".".join([stage.__name__, *path]))
        for stage in STAGES
        for path, listed in numbers(stage, kind)
    ]


def refusals(stage: type[StageConfig], path: Field, value: object) -> list[str]:
    """Types of the errors at a field that is given a value; those of other fields are left out."""
    document: object = value
    for name in reversed(path):
        document = {name: document}
    try:
        stage.model_validate(document)
    except ValidationError as error:
        return [found["type"] for found in error.errors() if found["loc"][: len(path)] == path]
    return []


@pytest.mark.parametrize(("stage", "path", "listed"), fields(float))
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_numbers_are_finite(stage: type[StageConfig], path: Field, listed: bool, value: str) -> None:
    number = float(value)
    assert refusals(stage, path, [number] if listed else number) == ["finite_number"]


def test_every_float_field_is_found() -> None:
    found = {param.id for param in fields(float)}
    assert {"PPOStage.kl_controller.target", "DPOStage.curriculum", "SFTStage.lora.alpha"} <= found
    assert {"PPOStage.temperature", "SplitStage.threshold", "HoldOutStage.fraction"} <= found


@pytest.mark.parametrize(("stage", "path", "listed"), fields(int))
def test_counts_have_a_bound(stage: type[StageConfig], path: Field, listed: bool) -> None:
    assert refusals(stage, path, [10**10] if listed else 10**10) == ["less_than_equal"]


def test_honest_counts_are_within_their_bounds() -> None:
    lora = {"rank": 1024}
    PPOStage.model_validate({"lora": lora, "episodes": 10**7, "rollout_prompts": 8192, "mini_batches": 512})
    SFTStage.model_validate({"lora": lora, "epochs": 100, "batch_pairs": 4096, "max_steps": 10**7})
    EvaluateStage.model_validate({"prompts": 10**6, "max_prompt_tokens": 2**20})
