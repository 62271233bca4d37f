"""What a job is asked to do: a preset method or an explicit list of stages, and what they work on."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

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
from mpo.training_config import Strict


class MPOMethod(Strict):
    """Mixed Preference Optimization (arXiv 2403.19443): DPO on easy pairs, then PPO on difficult ones."""

    type: Literal["mpo"]
    hold_out: HoldOutStage = HoldOutStage()
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

    @model_validator(mode="after")
    def _backbone_exists(self) -> Self:
        if self.reward_model.backbone == "sft" and self.sft is None:
            raise ValueError("reward_model.backbone is sft, and sft is null")
        return self


Method = MPOMethod


class JobSpec(Strict):
    """What a job is asked to do. `dataset` and `model` may be left out where the caller gives files."""

    name: str = Field("", max_length=200, description="For people; need not be unique.")
    model: str | None = Field(None, min_length=1, max_length=200, description="A policy: base or trained.")
    dataset: str | None = Field(None, min_length=1, max_length=200, description="Preference pairs: ds_…")
    eval_dataset: str | None = Field(
        None, min_length=1, max_length=200, description="Pairs to evaluate on, in place of a held-out share."
    )
    method: Method
    pause_after: list[str] = Field(
        [], max_length=20, description="Stages after which what depends on them waits for a person."
    )
    seed: NonNegativeInt = Field(0, lt=2**31, description="Seed of everything random in the job.")
    labels: dict[str, str] = Field({}, max_length=50, description="Free names and values to find jobs by.")
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")

    @model_validator(mode="after")
    def _something_to_evaluate_on(self) -> Self:
        nothing_held_out = self.method.hold_out.fraction == 0 and self.eval_dataset is None
        if nothing_held_out and self.method.evaluate is not None:
            raise ValueError(
                "hold_out.fraction is 0 and there is no eval_dataset: give either, or set evaluate to null"
            )
        return self
