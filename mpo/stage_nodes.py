"""Explicit stages as a spec writes them: a configuration with a name and inputs. Torch-free."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, Tag, TypeAdapter

from mpo.config import (
    DPOStage,
    EvaluateStage,
    HoldOutStage,
    PPOStage,
    RewardModelStage,
    ScoreStage,
    SFTStage,
    SplitStage,
    Stage,
)
from mpo.roles import ROLES
from mpo.spec_places import refused_field
from mpo.training_config import Strict

_STAGE: TypeAdapter[Stage] = TypeAdapter(Stage)
SourceName = Annotated[str, Field(min_length=1, max_length=200)]
Given = Annotated[
    Annotated[SourceName, Tag("str")]
    | Annotated[list[SourceName], Field(min_length=1, max_length=100), Tag("list")],
    Discriminator(lambda given: "list" if isinstance(given, list) else "str"),
]
"""One source, or several. Told apart by what they are, so that one is refused for one reason."""

KINDS = tuple(ROLES)
_ROLE = re.compile(r"[a-z_]{1,40}")


def _roles_are_words(inputs: Any) -> Any:
    """Refused here, for the whole: a place in an answer can only be named by what JSON can hold."""
    roles = inputs if isinstance(inputs, dict) else {}
    if not all(isinstance(role, str) and _ROLE.fullmatch(role) for role in roles):
        raise ValueError("inputs go by their roles, lower-case words such as data or reward_models")
    return inputs


class _Node(Strict):
    """What an explicit stage has besides its configuration."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="Unlike every other stage's of the job."
    )
    seed: NonNegativeInt | None = Field(None, lt=2**31, description="Null = the job's.")
    inputs: Annotated[dict[str, Given], BeforeValidator(_roles_are_words)] = Field(
        description="By role: a stage (its main output), stage.output, a dataset (ds_…), a base model or a "
        "trained job_…:stage; a list where the role takes several."
    )

    def stage_config(self) -> Stage:
        """The configuration alone."""
        return _STAGE.validate_python(self.model_dump(exclude=set(_Node.model_fields)))


class HoldOutNode(_Node, HoldOutStage):
    """`data`, and perhaps `eval` -> train, eval."""


class SFTNode(_Node, SFTStage):
    """`policy`, `data` (chosen responses, or texts) -> model."""


class RewardModelNode(_Node, RewardModelStage):
    """`backbone`, `data`, and perhaps `eval` -> model."""


class ScoreNode(_Node, ScoreStage):
    """`reward_models` (for cross_fit one a fold, in order), `data` -> scores."""


class SplitNode(_Node, SplitStage):
    """`scores`, `data` -> easy, difficult, dropped."""


class DPONode(_Node, DPOStage):
    """`policy`, `reference`, `data` -> model."""


class PPONode(_Node, PPOStage):
    """`policy`, `reference`, `reward_model`, `prompts`, and perhaps `sft` -> model."""


class EvaluateNode(_Node, EvaluateStage):
    """`models`, `judge`, `data`, and perhaps `reward_model`, `sft`, `dpo` (for KL) -> report, samples."""


def _kind_is_known(stage: Any) -> Any:
    """Told at the field kind: a union would name the stage alone."""
    if isinstance(stage, dict) and stage.get("kind") not in KINDS:
        what = f"should be one of {', '.join(KINDS)}" if "kind" in stage else "is required"
        raise refused_field(f"kind {what}", "kind")
    return stage


ExplicitStage = Annotated[
    HoldOutNode | SFTNode | RewardModelNode | ScoreNode | SplitNode | DPONode | PPONode | EvaluateNode,
    Field(discriminator="kind"),
    BeforeValidator(_kind_is_known),
]
