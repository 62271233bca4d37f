"""Fine-tuning jobs in OpenAI's shapes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from app.inference.schemas import ModelName, OpenAIBody
from app.wire import Storable

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


def _unless_auto(value: object) -> object:
    return None if value == "auto" else value


class Hyperparameters(OpenAIBody):
    """Null and `auto` leave a setting to the service."""

    n_epochs: Annotated[PositiveInt | None, BeforeValidator(_unless_auto)] = None
    batch_size: Annotated[PositiveInt | None, BeforeValidator(_unless_auto)] = None
    learning_rate_multiplier: Annotated[PositiveFloat | None, BeforeValidator(_unless_auto)] = Field(
        None, description="Of the service's own learning rate."
    )


class DPOHyperparameters(Hyperparameters):
    """With the inverse temperature of the implicit reward."""

    beta: Annotated[PositiveFloat | None, BeforeValidator(_unless_auto)] = None


class SupervisedMethod(OpenAIBody):
    hyperparameters: Hyperparameters = Hyperparameters()


class DPOMethod(OpenAIBody):
    hyperparameters: DPOHyperparameters = DPOHyperparameters()


class Supervised(OpenAIBody):
    """Train on texts, or on the chosen responses of preferences."""

    type: Literal["supervised"]
    supervised: SupervisedMethod = SupervisedMethod()


class DPO(OpenAIBody):
    """Train on preferences alone."""

    type: Literal["dpo"]
    dpo: DPOMethod = DPOMethod()


class MPO(OpenAIBody):
    """Mixed Preference Optimization; `mpo` is this service's own method, without its type."""

    type: Literal["mpo"]
    mpo: dict[str, Any] = Field(default_factory=dict)


Method = Annotated[Supervised | DPO | MPO, Field(discriminator="type")]


class FineTuningCreate(OpenAIBody):
    """A job to be made. Without a method, preferences are trained on by MPO."""

    model: ModelName
    training_file: Annotated[Storable, Field(min_length=1, max_length=200)]
    validation_file: Annotated[Storable, Field(min_length=1, max_length=200)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(
        None, description="As OpenAI had them before methods; of supervised training."
    )
    seed: NonNegativeInt | None = None
    suffix: Annotated[Storable, Field(max_length=64)] | None = Field(None, description="Names the job.")
    metadata: dict[Storable, Storable] | None = Field(None, description="Free names and values.")


class JobError(BaseModel):
    """Why a job failed; param: the stage."""

    code: str
    message: str
    param: str | None


class FineTuningJob(BaseModel):
    """A job as OpenAI's clients know it; its id is the job's."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    error: JobError | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Status
    training_file: str
    validation_file: str | None
    result_files: list[str] = []
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    trained_tokens: int | None = None
    integrations: list[Any] = []
    metadata: dict[str, str]


class FineTuningEvent(BaseModel):
    """Something that happened in a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class Checkpoint(BaseModel):
    """A model that a stage of the job has made."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int
