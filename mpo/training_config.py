"""What the configurations of all stages, or of all that train a model, share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

NEUTRAL: dict[str, Any] = {"neutral": True}
KEYED_WHERE_SET: dict[str, Any] = {"keyed_where_set": True}
"""Of a field that came later: at its default it is in no key, so that older keys stay what they were."""
Slot = Literal["cpu", "gpu"]
Precision = Literal["auto", "fp32", "bf16"]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
HalfFraction = Annotated[float, Field(ge=0, lt=0.5)]
LearningRate = Annotated[float, Field(ge=0, le=1)]
ShortText = Annotated[str, Field(min_length=1, max_length=200)]
MOST_FOLDS = 20
Folds = Annotated[int, Field(ge=1, le=MOST_FOLDS)]
Epochs = Annotated[int, Field(ge=1, le=1000)]
BatchRows = Annotated[int, Field(ge=1, le=65_536)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Count = Annotated[int, Field(ge=1, le=10**9)]
"""Bounds far above what anybody trains with: what passes one is a slip, and would run for years."""


class Strict(BaseModel):
    """Frozen; unknown keys, NaN and infinities refused: a key is hashed from JSON, which has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageConfig(Strict):
    """What all kinds of stages share."""

    revision: ClassVar[int] = 1
    slot: ClassVar[Slot] = "gpu"
    unread: ClassVar[frozenset[str]] = frozenset()
    """Fields that this kind of stage has and never reads."""


class LoRAConfig(Strict):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in place of training every weight."""

    rank: int = Field(16, ge=1, le=4096, description="Rank of the update of each adapted matrix.")
    alpha: PositiveFloat = Field(32.0, description="The update is scaled by alpha / rank.")
    target_modules: list[ShortText] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Names of the linear layers to adapt, as q_proj; null = every one of the backbone.",
    )

    @property
    def shape(self) -> tuple[object, ...]:
        """What an adapter keeps that goes on from stage to stage."""
        return self.rank, self.alpha, self.target_modules and sorted(self.target_modules)


TRAINS_NOTHING = frozenset(
    {"learning_rate", "epochs", "max_steps", "batch_pairs", "lora", "gradient_checkpointing"}
)
"""What a stage that only runs models has no use for."""


class TokenLimits(Strict):
    """How much of a text a model reads."""

    max_prompt_tokens: Tokens | None = Field(
        None,
        description="Prompts are cut at their beginning to this. Null = half the context, at most 1,024.",
    )
    max_response_tokens: Tokens | None = Field(
        None,
        description="Responses are cut at their end to this. Null = a quarter of the context, at most 512.",
    )


class TrainingConfig(TokenLimits, StageConfig):
    """What all stages that train or run a model share."""

    learning_rate: LearningRate = Field(
        2e-5, description="Peak learning rate of AdamW; falls linearly to 0, without warm-up."
    )
    epochs: Epochs = Field(1, description="Passes over the data.")
    max_steps: Count | None = Field(None, description="Optimizer steps at most; null = no limit.")
    batch_pairs: BatchRows = Field(16, description="Rows (pairs; texts in SFT) an optimizer step.")
    checkpoint_seconds: NonNegativeFloat = Field(
        300.0, description="Seconds between checkpoints; 0 = at every step.", json_schema_extra=NEUTRAL
    )
    lora: LoRAConfig | None = Field(
        None, description="Train adapters over the frozen base; null = train every weight."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep each layer's input alone for the backward pass, and compute the rest again: less "
        "memory, more time, the same result.",
        json_schema_extra=NEUTRAL,
    )
    precision: Precision = Field(
        "auto",
        description="What forward passes compute in. bf16 = mixed precision: weights, gradients, optimizer "
        "and losses stay in fp32; slower than fp32 on a CPU that lacks instructions for it. auto = bf16 on a "
        "GPU that supports it, fp32 elsewhere. Responses are sampled, and evaluations made, in fp32.",
        json_schema_extra=KEYED_WHERE_SET,
    )
