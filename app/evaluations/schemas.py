"""Evaluations on the wire."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.evaluations.report import EvaluationReport
from app.wire import Body, Seconds, Storable, View
from core.comparing import different
from core.states import JobState
from mpo.config import EvaluationSettings
from mpo.training_config import TokenLimits

MOST_MODELS = 8

ModelName = Annotated[Storable, Field(min_length=1, max_length=200)]


class EvaluationCreate(Body, EvaluationSettings, TokenLimits):
    """Models to measure on the prompts of a dataset of pairs, by a judge."""

    models: Annotated[
        list[ModelName], Field(min_length=1, max_length=MOST_MODELS), AfterValidator(different)
    ] = Field(description="1 to 8 base models or `job_…:stage`, in the order of their reports.")
    judge: ModelName = Field(description="A reward model that trained none of the models.")
    reward_model: ModelName | None = Field(
        None, description="The one that they were trained against: numbers come by the gaps that it gives."
    )
    sft: ModelName | None = Field(None, description="KL is measured to it; null = to the first model.")
    dpo: ModelName | None = Field(None, description="KL is measured to it too.")
    dataset: ModelName = Field(description="Preference pairs, whose prompts the models answer.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of which prompts are taken, and of every response.")


class EvaluationProgress(View):
    """Steps are phases: a scorer's scores, a model's answers, a KL."""

    step: int = 0
    total_steps: int = 0
    fraction: float = 0.0
    eta_seconds: float | None = None


class EvaluationError(View):
    """Why the evaluation failed."""

    code: str
    message: str


class EvaluationView(EvaluationSettings, TokenLimits, View):
    """An evaluation, with every length as it was resolved; the report once it has succeeded."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    status: JobState
    models: list[str]
    judge: str
    reward_model: str | None
    sft: str | None
    dpo: str | None
    dataset: str
    seed: int
    progress: EvaluationProgress
    warnings: list[str]
    report: EvaluationReport | None
    error: EvaluationError | None
    run_id: str | None
    created_at: Seconds
    started_at: Seconds | None
    finished_at: Seconds | None


class EvaluatedResponse(View):
    """One response of a model. tokens: how many, the stop token included; score: the judge's."""

    model: str
    sample: int
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    score: float


class EvaluationSample(View):
    """One prompt, and what every model answered."""

    index: int
    prompt: str | list[dict[str, str]]
    responses: list[EvaluatedResponse]
