"""What a job is asked to do: a preset method or an explicit list of stages, and what they work on."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, ValidationInfo, field_validator, model_validator

from mpo.config import (
    DPOStage,
    EvaluateStage,
    HoldOutStage,
    PPOStage,
    RewardModelStage,
    ScoreStage,
    SFTStage,
    SplitStage,
)
from mpo.spec_places import refused_field
from mpo.stage_nodes import ExplicitStage
from mpo.training_config import Strict


class _Preset(Strict):
    """What all presets share: a field a stage, by its name."""

    hold_out: HoldOutStage = HoldOutStage()

    @model_validator(mode="after")
    def _backbones_exist(self) -> Self:
        for name in ("reward_model", "judge"):
            config = getattr(self, name, None)
            if config is not None and config.backbone == "sft" and getattr(self, "sft", None) is None:
                raise refused_field("is sft, and there is no stage sft", name, "backbone")
            if config is not None and config.fold is not None:
                raise refused_field("is for explicit stages: here the folds are score's", name, "fold")
        return self


class MPOMethod(_Preset):
    """Mixed Preference Optimization (arXiv 2403.19443): DPO on easy pairs, then PPO on difficult ones."""

    type: Literal["mpo"]
    sft: SFTStage | None = SFTStage()
    reward_model: RewardModelStage = RewardModelStage()
    score: ScoreStage = ScoreStage()
    split: SplitStage = SplitStage()
    dpo: DPOStage = DPOStage()
    ppo: PPOStage = PPOStage()
    judge: RewardModelStage | None = Field(
        None, description="The evaluation's independent judge; null = as reward_model, with another seed."
    )
    evaluate: EvaluateStage | None = EvaluateStage()


class SFTMethod(_Preset):
    """Supervised fine-tuning alone, on the chosen responses or on a dataset of texts."""

    type: Literal["sft"]
    sft: SFTStage = SFTStage()


class RewardModelMethod(_Preset):
    """A reward model alone (Bradley and Terry 1952)."""

    type: Literal["reward_model"]
    reward_model: RewardModelStage = RewardModelStage()


class DPOMethod(_Preset):
    """Direct Preference Optimization (arXiv 2305.18290) on all pairs that are not held out."""

    type: Literal["dpo"]
    sft: SFTStage | None = SFTStage()
    dpo: DPOStage = DPOStage()
    judge: RewardModelStage | None = Field(
        None, description="The evaluation's judge; null = a reward model with every default."
    )
    evaluate: EvaluateStage | None = EvaluateStage()

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.dpo.curriculum is not None:
            raise refused_field("goes by gaps, and this method scores no pair: use mpo", "dpo", "curriculum")
        return self


class PPOMethod(_Preset):
    """Proximal Policy Optimization (arXiv 1707.06347) on the prompts of all pairs that are not held out."""

    type: Literal["ppo"]
    sft: SFTStage | None = SFTStage()
    reward_model: RewardModelStage = RewardModelStage()
    ppo: PPOStage = PPOStage()
    judge: RewardModelStage | None = Field(
        None, description="The evaluation's independent judge; null = as reward_model, with another seed."
    )
    evaluate: EvaluateStage | None = EvaluateStage()


Preset = MPOMethod | SFTMethod | RewardModelMethod | DPOMethod | PPOMethod
Method = Annotated[Preset, Field(discriminator="type")]


class JobSpec(Strict):
    """What a job is asked to do. `dataset` and `model` may be left out where the caller gives files."""

    name: str = Field("", max_length=200, description="For people; need not be unique.")
    model: str | None = Field(None, min_length=1, max_length=200, description="A policy: base or trained.")
    dataset: str | None = Field(None, min_length=1, max_length=200, description="Preference pairs: ds_…")
    eval_dataset: str | None = Field(
        None, min_length=1, max_length=200, description="Pairs to evaluate on, in place of a held-out share."
    )
    stages: list[ExplicitStage] | None = Field(
        None, min_length=1, max_length=100, description="The stages themselves, in place of a method."
    )
    method: Method | None = Field(
        None, validate_default=True, description="A preset that is expanded to stages."
    )
    pause_after: list[str] = Field(
        [], max_length=20, description="Stages after which what depends on them waits for a person."
    )
    seed: NonNegativeInt = Field(0, lt=2**31, description="Seed of everything random in the job.")
    labels: dict[str, str] = Field({}, max_length=50, description="Free names and values to find jobs by.")
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")

    @field_validator("method", mode="after")
    @classmethod
    def _either_method_or_stages(cls, method: Preset | None, info: ValidationInfo) -> Preset | None:
        # Stages that were refused are not in info.data: their own errors are told then.
        if "stages" in info.data and (method is None) == (info.data["stages"] is None):
            raise ValueError("give either method or stages" + (", not both" if method else ""))
        return method

    @model_validator(mode="after")
    def _something_to_evaluate_on(self) -> Self:
        if self.method is None:
            return self
        nothing_held_out = self.method.hold_out.fraction == 0 and self.eval_dataset is None
        if nothing_held_out and getattr(self.method, "evaluate", None) is not None:
            raise refused_field(
                "is 0 and there is no eval_dataset: give either, or set evaluate to null",
                "method",
                "hold_out",
                "fraction",
            )
        return self
