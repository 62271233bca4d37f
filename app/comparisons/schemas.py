"""Comparisons on the wire."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from app.wire import Body, Seconds, Storable, View
from core.comparing import (
    MAX_PROMPTS,
    ComparedPrompt,
    ComparisonSampling,
    JudgeScorer,
    ModelName,
    RewardModelScorer,
    different,
)
from core.states import JobState

SHOWN_ROWS = 20


class Scorer(Body):
    """Who says which response is better: a reward model, or a judge."""

    reward_model: ModelName | None = None
    judge: JudgeScorer | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.reward_model is None) == (self.judge is None):
            raise ValueError("should have either `reward_model` or `judge`")
        return self

    @property
    def asked(self) -> RewardModelScorer | JudgeScorer:
        """The one that is given."""
        if self.judge is not None:
            return self.judge
        return RewardModelScorer(reward_model=self.reward_model or "")


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
    blind: bool = Field(
        False,
        description="Sides in place of models, shuffled by row, until the row is voted on: of two models.",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.prompts is None) == (self.dataset is None):
            raise ValueError("should have either `prompts` or `dataset`")
        if self.scorer is not None and self.scorer.judge is not None and self.sampling.n > 1:
            raise ValueError("a judge compares one response a model: `sampling.n` should be 1")
        if self.blind and (len(self.models) != 2 or self.sampling.n != 1):
            raise ValueError("`blind` asks for two models and `sampling.n` 1")
        if self.limit is not None and self.dataset is None:
            raise ValueError("`limit` goes with `dataset`")
        return self


class ComparedResponse(View):
    """One model's response. tokens: how many; score: null where nothing scored it.

    model: null where the comparison is blind and nobody has voted on the row yet, as the score is then. side:
    what a vote calls it; null where more than two models are compared.
    """

    model: str | None
    side: Literal["A", "B"] | None = None
    sample: int
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    score: float | None


Preferred = Literal["A", "B", "tie", "both_bad"]


class VoteBody(Body):
    """What an annotator says of a row."""

    row: int = Field(ge=0, lt=2**31)
    preferred: Preferred
    annotator: Annotated[Storable, Field(min_length=1, max_length=200)] = "anonymous"


class VoteView(View):
    """A vote that was given."""

    annotator: str
    preferred: Preferred


class ComparisonRowView(View):
    """One prompt, what each model answered, and what people said of it."""

    index: int
    prompt: Any
    responses: list[ComparedResponse]
    votes: list[VoteView] = Field(default_factory=list)


class WinRate(View):
    """How often model_a has the higher mean score; a tie counts half. in_training: the scorer trained one.

    length_controlled: the rate if both responses were equally long; null where that cannot be told. p_value:
    of a rate of one half, corrected by Holm over the comparison's pairs; significant: it is below 0.05.
    Of a judge also, all null else: ties on which it contradicted itself once the order was exchanged, and
    prompts that do not count in n, as its answer could not be read or did not come.
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
    disagreed: int | None = None
    unparsed: int | None = None
    failed: int | None = None


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
    scorer: RewardModelScorer | JudgeScorer | None
    blind: bool
    rows: list[ComparisonRowView]
    row_count: int
    win_rates: list[WinRate]
    progress: ComparisonProgress
    error: ComparisonError | None
    run_id: str | None
    created_at: Seconds
    finished_at: Seconds | None
