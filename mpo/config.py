"""Configuration of stages: the API's schema, the library's arguments and the record.

Each class is one kind of stage. `revision` is raised by hand when a stage's results change for the same
configuration; it is part of the stage's key. Fields marked neutral cannot change a result and stay out of it;
those marked keyed_where_set stay out of it at their default.
"""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from mpo.training_config import (
    MOST_FOLDS,
    NEUTRAL,
    TRAINS_NOTHING,
    BatchRows,
    Count,
    Epochs,
    Folds,
    HalfFraction,
    LearningRate,
    OpenFraction,
    ShortText,
    Slot,
    StageConfig,
    Strict,
    Tokens,
    TrainingConfig,
)


class HoldOutStage(StageConfig):
    """Prompt groups, and which of them no training sees (method: Hold-out)."""

    slot: ClassVar[Slot] = "cpu"
    kind: Literal["hold_out"] = "hold_out"
    fraction: float = Field(0.1, ge=0, lt=1, description="Share of the pairs held out; 0 = none.")


class SFTStage(TrainingConfig):
    """Cross-entropy on the tokens of the chosen responses, or of texts."""

    revision: ClassVar[int] = 2
    kind: Literal["sft"] = "sft"


class RewardModelStage(TrainingConfig):
    """Bradley-Terry reward model: backbone and a scalar head read at the last real token."""

    revision: ClassVar[int] = 2
    kind: Literal["reward_model"] = "reward_model"
    engine: Literal["native", "trl"] = Field("native", description="Training engine.")
    backbone: Literal["model", "sft"] = Field(
        "model",
        description="What the reward model starts from; explicit stages say it by their input.",
        json_schema_extra=NEUTRAL,  # the input is in the key
    )
    learning_rate: LearningRate = Field(
        1e-4, description="Peak learning rate of AdamW; falls linearly to 0, without warm-up."
    )
    margin: bool = Field(True, description="Ask for at least the gap that the column margin names.")
    weight: bool = Field(True, description="Weigh each pair's loss by the column weight.")
    label_smoothing: HalfFraction = Field(0.0, description="Share of labels taken to be wrong.")
    centring: NonNegativeFloat = Field(
        0.0, description="Weight of (r_chosen + r_rejected)², which keeps rewards near 0; 0.01 is usual."
    )
    fold: Folds | None = Field(None, description="Train without this fold (from 1); null = on all.")
    folds: Folds | None = Field(None, description="Number of folds that `fold` counts in.")
    on_weak: Literal["pause", "warn", "fail"] = Field(
        "pause",
        description="What to do where the reward model tells chosen from rejected no better than chance "
        "or than response length alone.",
        json_schema_extra=NEUTRAL,
    )

    @model_validator(mode="after")
    def _fold_within_folds(self) -> Self:
        if (self.fold is None) != (self.folds is None):
            raise ValueError("fold and folds are given together")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "trl" and self.label_smoothing > 0:
            raise ValueError("label_smoothing needs engine native: TRL's reward loss has none")
        return self


class ScoreStage(TrainingConfig):
    """Rewards and gap of every training pair, by a reward model that has not seen it."""

    revision: ClassVar[int] = 2
    unread: ClassVar[frozenset[str]] = TRAINS_NOTHING
    kind: Literal["score"] = "score"
    scheme: Literal["cross_fit", "held_out", "in_sample"] = Field(
        "cross_fit",
        description="Who scores a pair: the fold's model that has not seen it; or a model trained on half of "
        "the prompt groups scores the other half, and only that half is split; or the final reward model, "
        "which takes its own training pairs for easy.",
    )
    calibration: Literal["none", "temperature"] = Field(
        "none",
        description="Divide each fold's rewards by the temperature that makes its gaps fit its labels.",
    )
    folds: int = Field(3, ge=2, le=MOST_FOLDS, description="Number of reward models that share the scoring.")
    on_weak: Literal["pause", "warn", "fail"] | None = Field(
        None,
        description="As reward_model.on_weak; null = what that says, in explicit stages pause.",
        json_schema_extra=NEUTRAL,
    )


class SplitStage(StageConfig):
    """Parts the scored pairs by reward gap into easy, difficult and dropped (method: Split)."""

    slot: ClassVar[Slot] = "cpu"
    kind: Literal["split"] = "split"
    threshold: float | None = Field(None, description="A pair is easy from this gap on, in reward units.")
    quantile: OpenFraction | None = Field(None, description="The threshold as this quantile of the gaps.")
    easy_fraction: OpenFraction | None = Field(
        None, description="The threshold such that this share is easy: quantile 1 - easy_fraction."
    )
    sign: Literal["signed", "absolute"] = Field("signed", description="Split by the gap, or by its size.")
    negative: Literal["difficult", "drop", "flip", "keep_easy"] = Field(
        "difficult", description="Where pairs go whose gap clearly contradicts the label (signed only)."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_to_half(cls, data: Any) -> Any:
        names = ("threshold", "quantile", "easy_fraction")
        if isinstance(data, dict) and all(data.get(name) is None for name in names):
            return {**data, "easy_fraction": 0.5}
        return data

    @model_validator(mode="after")
    def _one_way_to_the_threshold(self) -> Self:
        given = [n for n in ("threshold", "quantile", "easy_fraction") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        return self


class DPOStage(TrainingConfig):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290)."""

    revision: ClassVar[int] = 2
    kind: Literal["dpo"] = "dpo"
    engine: Literal["native", "trl"] = Field("native", description="Training engine.")
    learning_rate: LearningRate = Field(
        1e-6, description="Peak learning rate of AdamW; falls linearly to 0, without warm-up."
    )
    beta: PositiveFloat = Field(0.1, description="Inverse temperature of the implicit reward.")
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "cdpo"] = Field(
        "sigmoid", description="Loss on the difference of log-ratios."
    )
    flip_rate: HalfFraction = Field(
        0.0, description="Share of labels taken to be wrong; needed by robust and cdpo, 0 elsewhere."
    )
    length_normalised: bool = Field(
        False, description="Log-probabilities as means over a response's tokens, not as sums."
    )
    sft_coefficient: NonNegativeFloat = Field(
        0.0, description="Weight of the chosen responses' cross-entropy, in nats a token, added to the loss."
    )
    curriculum: list[float] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="Falling gaps that cut the pairs into passes, easiest first; each pass's result is the "
        "next one's reference. Null = one pass over all.",
    )

    @model_validator(mode="after")
    def _loss_has_what_it_needs(self) -> Self:
        if (self.loss in {"robust", "cdpo"}) != (self.flip_rate > 0):
            raise ValueError("flip_rate above 0 goes with the losses robust and cdpo, and they need one")
        if self.curriculum and any(a <= b for a, b in pairwise(self.curriculum)):
            raise ValueError("curriculum falls from gap to gap: the easiest pairs come first")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "trl" and (self.length_normalised or self.sft_coefficient > 0):
            raise ValueError("length_normalised and sft_coefficient need engine native")
        return self


class KLController(Strict):
    """Adaptive KL coefficient (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    target: PositiveFloat = Field(6.0, description="KL to the reference to keep to, in nats a response.")
    horizon: Count = Field(10_000, description="Episodes in which the coefficient can adapt.")


class PPOStage(TrainingConfig):
    """Proximal Policy Optimization against the reward model, with a KL penalty to the reference."""

    revision: ClassVar[int] = 2
    kind: Literal["ppo"] = "ppo"
    learning_rate: LearningRate = Field(3e-6, description="Initial learning rate of AdamW, linear decay.")
    kl_coefficient: NonNegativeFloat = Field(0.05, description="Reward lost per nat of KL to the reference.")
    rollout_prompts: BatchRows = Field(64, description="Episodes an iteration samples.")
    mini_batches: BatchRows = Field(4, description="Optimizer steps a pass over an iteration's episodes.")
    epochs: Epochs = Field(4, description="Passes over each iteration's episodes.")
    episodes: Count | None = Field(
        None, description="Responses sampled in all; null = one for each distinct prompt."
    )
    max_new_tokens: Tokens | None = Field(
        None, description="Longest sampled response, in tokens. Null = a quarter of the context, at most 128."
    )
    temperature: PositiveFloat = Field(1.0, description="The policy is softmax(logits / temperature).")
    clip: OpenFraction = Field(0.2, description="Range of the probability ratio around 1.")
    critic: Literal["separate", "shared_trunk"] = Field(
        "separate",
        description="Where values come from: a network of its own that starts as the reward model, or a head "
        "on the policy that starts at 0 (another algorithm, and faster).",
    )
    kl_controller: KLController | None = Field(
        None, description="Adapts kl_coefficient after each iteration; null = it is fixed."
    )
    ema_reference: OpenFraction | None = Field(
        None,
        description="After each iteration the reference becomes this share of itself and the rest of the "
        "policy; null = it stays what it was.",
    )
    value_clip: PositiveFloat = Field(0.2, description="Range of the value around its old one.")
    value_coefficient: NonNegativeFloat = Field(0.1, description="Weight of the value loss.")
    discount: float = Field(1.0, ge=0, le=1, description="Discount a token (gamma).")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of generalized advantage estimation.")
    missing_eos_penalty: NonNegativeFloat = Field(1.0, description="Reward lost by a response that was cut.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this norm.")
    max_kl: PositiveFloat | None = Field(
        None, description="Stop when the KL to the reference passes this many nats a response."
    )
    equal_iterations: Count = Field(
        5, description="Stop after this many iterations in a row whose rewards are all equal."
    )

    @model_validator(mode="after")
    def _controller_keeps_the_coefficient_above_0(self) -> Self:
        controller = self.kl_controller
        if controller is None:
            return self
        if self.kl_coefficient == 0:
            raise ValueError("kl_controller multiplies kl_coefficient, so it cannot start at 0")
        if self.rollout_prompts >= 5 * controller.horizon:
            raise ValueError("kl_controller.horizon is above a fifth of rollout_prompts")
        return self


class EvaluationSettings(Strict):
    """How models are asked and judged."""

    prompts: Count = Field(64, description="Held-out prompts at most.")
    max_new_tokens: Tokens | None = Field(
        None, description="Longest sampled response, in tokens. Null = a quarter of the context, at most 128."
    )
    temperature: PositiveFloat = Field(1.0, description="Sampling temperature.")
    samples: int = Field(1, ge=1, le=64, description="Responses of each model to each prompt.")
    judge_independence: Literal["other_seed", "other_data", "llm", "gold"] = Field(
        "other_seed",
        description="In what the judge differs from the reward model that was trained against. The plan "
        "finds it; say other_data only of a judge from another job.",
    )


class EvaluateStage(EvaluationSettings, TrainingConfig):
    """Win rates, rewards and KL of models on held-out prompts, by a judge that trained none of them."""

    revision: ClassVar[int] = 4
    unread: ClassVar[frozenset[str]] = TRAINS_NOTHING | {"precision"}
    kind: Literal["evaluate"] = "evaluate"
    names: dict[ShortText, Annotated[list[ShortText], Field(max_length=100)]] | None = Field(
        None,
        max_length=10,
        description="What the report calls its inputs, by role. The plan sets it, whatever is given.",
    )


Stage = Annotated[
    HoldOutStage
    | SFTStage
    | RewardModelStage
    | ScoreStage
    | SplitStage
    | DPOStage
    | PPOStage
    | EvaluateStage,
    Field(discriminator="kind"),
]
