"""Comparisons on the wire."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from app.wire import Body, Seconds, View
from core.comparing import (
    MAX_PROMPTS,
    ComparedPrompt,
    ComparisonSampling,
    ModelName,
    RewardModelScorer,
    different,
)
from core.states import JobState

SHOWN_ROWS = 20
NOT_YET = "is not available yet"


def _no_judge(value: object) -> object:
    raise ValueError(f"A judge as scorer {NOT_YET}; accepted is {{'reward_model': name}} or null")


def _not_blind(value: bool) -> bool:
    if value:
        raise ValueError(f"A blind comparison {NOT_YET}; send false")
    return value


class Scorer(RewardModelScorer):
    """Who scores the responses: a reward model."""

    judge: Annotated[Any, AfterValidator(_no_judge)] = Field(
        None, exclude=True, description="Not available yet."
    )
    reward_model: ModelName


class ComparisonCreate(Body):
    """Models to compare on prompts, given here or the first `limit` rows of a dataset."""

    models: Annotated[list[ModelName], Field(min_length=2, max_length=8), AfterValidator(different)] = Field(
        description="2 to 8 base models or `job_…:stage`."
    )
    prompts: Annotated[list[ComparedPrompt], Field(min_length=1, max_length=MAX_PROMPTS)] | None = None
    dataset: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] | None = None
    limit: int | None = Field(None, ge=1, le=MAX_PROMPTS, description="Rows of the dataset; default 100.")
    sampling: ComparisonSampling = ComparisonSampling()
    scorer: Scorer | None = Field(None, description="Null: nothing is scored, and there are no win rates.")
    blind: Annotated[bool, AfterValidator(_not_blind)] = Field(False, description="Not available yet.")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.prompts is None) == (self.dataset is None):
            raise ValueError("should have either `prompts` or `dataset`")
        if self.limit is not None and self.dataset is None:
            raise ValueError("`limit` goes with `dataset`")
        return self


class ComparedResponse(View):
    """One model's response. tokens: how many; score: null where nothing scored it."""

    model: str
    sample: int
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    score: float | None


class ComparisonRowView(View):
    """One prompt and what each model answered."""

    index: int
    prompt: Any
    responses: list[ComparedResponse]


class WinRate(View):
    """How often model_a has the higher mean score; a tie counts half. in_training: the scorer trained one.

    length_controlled: the rate if both responses were equally long; null where that cannot be told. p_value:
    of a rate of one half, corrected by Holm over the comparison's pairs; significant: it is below 0.05.
    """

    model_a: str
    model_b: str
    wins: int
    losses: int
    ties: int
    win_rate: float | None
    ci95: tuple[float, float]
    length_controlled: float | None
    n: int
    in_training: bool
    p_value: float | None = None
    significant: bool | None = None


class ComparisonProgress(View):
    """Steps are rows."""

    step: int
    total_steps: int
    fraction: float
    eta_seconds: float | None


class ComparisonError(View):
    """Why the comparison failed."""

    code: str
    message: str


class ComparisonView(View):
    """A comparison; `rows` holds the first ones, /rows all."""

    id: str
    object: Literal["comparison"] = "comparison"
    status: JobState
    models: list[str]
    dataset: str | None
    sampling: ComparisonSampling
    scorer: RewardModelScorer | None
    rows: list[ComparisonRowView]
    row_count: int
    win_rates: list[WinRate]
    progress: ComparisonProgress
    error: ComparisonError | None
    run_id: str | None
    created_at: Seconds
    finished_at: Seconds | None
