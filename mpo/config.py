"""Configuration of stages, presets and jobs: the API's schema, the library's arguments and the record.

Each class is one kind of stage. `revision` is raised by hand when a stage's results change for the same
configuration; it is part of the stage's key. Fields marked neutral cannot change a result and stay out of it.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

NEUTRAL: dict[str, Any] = {"neutral": True}
Slot = Literal["cpu", "gpu"]
OpenFraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
LearningRate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Strict(BaseModel):
    """Frozen; unknown keys refused; NaN and infinities refused where a field says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageConfig(Strict):
    """What all kinds of stages share."""

    revision: ClassVar[int] = 1
    slot: ClassVar[Slot] = "gpu"


class TrainingConfig(StageConfig):
    """What all stages that train or run a model share."""

    learning_rate: LearningRate = Field(
        2e-5, description="Peak learning rate of AdamW; falls linearly to 0, without warm-up."
    )
    epochs: PositiveInt = Field(1, description="Passes over the data.")
    max_steps: PositiveInt | None = Field(None, description="Optimizer steps at most; null = no limit.")
    batch_pairs: PositiveInt = Field(16, description="Rows (pairs; texts in SFT) an optimizer step.")
    max_prompt_tokens: PositiveInt | None = Field(
        None,
        description="Prompts are cut at their beginning to this. Null = half the context, at most 1,024.",
    )
    max_response_tokens: PositiveInt | None = Field(
        None,
        description="Responses are cut at their end to this. Null = a quarter of the context, at most 512.",
    )
    checkpoint_seconds: NonNegativeFloat = Field(
        300.0, description="Seconds between checkpoints; 0 = at every step.", json_schema_extra=NEUTRAL
    )


class HoldOutStage(StageConfig):
    """Prompt groups, and which of them no training sees (method: Hold-out)."""

    slot: ClassVar[Slot] = "cpu"
    kind: Literal["hold_out"] = "hold_out"
    fraction: float = Field(0.1, ge=0, lt=1, description="Share of the pairs held out; 0 = none.")


class SFTStage(TrainingConfig):
    """Cross-entropy on the tokens of the chosen responses."""

    kind: Literal["sft"] = "sft"


class RewardModelStage(TrainingConfig):
    """Bradley-Terry reward model: backbone and a scalar head read at the last real token."""

    kind: Literal["reward_model"] = "reward_model"
    engine: Literal["trl"] = Field("trl", description="Training engine.")
    backbone: Literal["model", "sft"] = Field("model", description="What the reward model starts from.")
    learning_rate: LearningRate = Field(
        1e-4, description="Peak learning rate of AdamW; falls linearly to 0, without warm-up."
    )
    fold: PositiveInt | None = Field(None, description="Train without this fold (from 1); null = on all.")
    folds: PositiveInt | None = Field(None, description="Number of folds that `fold` counts in.")
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


class ScoreStage(TrainingConfig):
    """Rewards and gap of every training pair, by a reward model that has not seen it."""

    kind: Literal["score"] = "score"
    scheme: Literal["cross_fit"] = Field(
        "cross_fit", description="Each pair is scored by the fold that has not seen it."
    )
    folds: int = Field(3, ge=2, le=20, description="Number of reward models that share the scoring.")
    on_weak: Literal["pause", "warn", "fail"] | None = Field(
        None, description="Taken from reward_model.on_weak.", json_schema_extra=NEUTRAL
    )


class SplitStage(StageConfig):
    """Parts the scored pairs by reward gap into easy, difficult and dropped (method: Split)."""

    slot: ClassVar[Slot] = "cpu"
    kind: Literal["split"] = "split"
    threshold: Finite | None = Field(None, description="A pair is easy from this gap on, in reward units.")
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

    kind: Literal["dpo"] = "dpo"
    engine: Literal["trl"] = Field("trl", description="Training engine.")
    learning_rate: LearningRate = Field(
        1e-6, description="Peak learning rate of AdamW; falls linearly to 0, without warm-up."
    )
    beta: PositiveFloat = Field(0.1, description="Inverse temperature of the implicit reward.")
    loss: Literal["sigmoid"] = Field("sigmoid", description="Loss on the difference of log-ratios.")


class PPOStage(TrainingConfig):
    """Proximal Policy Optimization against the reward model, with a KL penalty to the reference."""

    kind: Literal["ppo"] = "ppo"
    learning_rate: LearningRate = Field(3e-6, description="Initial learning rate of AdamW, linear decay.")
    kl_coefficient: NonNegativeFloat = Field(0.05, description="Reward lost per nat of KL to the reference.")
    rollout_prompts: PositiveInt = Field(64, description="Episodes an iteration samples.")
    mini_batches: PositiveInt = Field(4, description="Optimizer steps a pass over an iteration's episodes.")
    epochs: PositiveInt = Field(4, description="Passes over each iteration's episodes.")
    episodes: PositiveInt | None = Field(
        None, description="Responses sampled in all; null = one for each distinct prompt."
    )
    max_new_tokens: PositiveInt | None = Field(
        None, description="Longest sampled response, in tokens. Null = a quarter of the context, at most 128."
    )
    temperature: PositiveFloat = Field(1.0, description="The policy is softmax(logits / temperature).")
    clip: OpenFraction = Field(0.2, description="Range of the probability ratio around 1.")
    critic: Literal["separate"] = Field("separate", description="Where values come from.")
    value_clip: PositiveFloat = Field(0.2, description="Range of the value around its old one.")
    value_coefficient: NonNegativeFloat = Field(0.1, description="Weight of the value loss.")
    discount: float = Field(1.0, ge=0, le=1, description="Discount a token (gamma).")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of generalized advantage estimation.")
    missing_eos_penalty: NonNegativeFloat = Field(1.0, description="Reward lost by a response that was cut.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this norm.")
    max_kl: PositiveFloat | None = Field(
        None, description="Stop when the KL to the reference passes this many nats a response."
    )


class EvaluateStage(TrainingConfig):
    """Win rates, rewards and KL of the job's models on held-out prompts, by a judge that trained none."""

    kind: Literal["evaluate"] = "evaluate"
    prompts: PositiveInt = Field(64, description="Held-out prompts at most.")
    max_new_tokens: PositiveInt | None = Field(
        None, description="Longest sampled response, in tokens. Null = a quarter of the context, at most 128."
    )
    temperature: PositiveFloat = Field(1.0, description="Sampling temperature.")


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


S = TypeVar("S", bound=StageConfig)


def resolve_lengths(config: S, context_tokens: int) -> S:
    """The same configuration with every length that was left open set from the model's context, in tokens.

    Raises ValueError where prompt and response, terminator included, cannot fit the context together.
    """
    if not isinstance(config, TrainingConfig):
        return config
    lengths = {
        "max_prompt_tokens": config.max_prompt_tokens or max(1, min(1024, context_tokens // 2)),
        "max_response_tokens": config.max_response_tokens or max(1, min(512, context_tokens // 4)),
    }
    if isinstance(config, PPOStage | EvaluateStage):
        lengths["max_new_tokens"] = config.max_new_tokens or max(1, min(128, context_tokens // 4))
    response = lengths.get("max_new_tokens", lengths["max_response_tokens"])
    longest = lengths["max_prompt_tokens"] + max(response, lengths["max_response_tokens"]) + 1
    if longest > context_tokens:
        raise ValueError(
            f"max_prompt_tokens, the longest response and its terminator come to {longest} tokens; "
            f"the model's context is {context_tokens}"
        )
    return config.model_copy(update=lengths)
