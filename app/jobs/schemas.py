"""Jobs on the wire."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.wire import Seconds, Storable
from core.states import JobState, StageState
from mpo.config import SplitStage
from mpo.job_spec import JobSpec


class CreateJob(JobSpec):
    """What a job is asked to do: a model, a dataset and a method; or stages, which name what they read."""

    name: Storable = Field("", max_length=200, description="For people; need not be unique.")
    labels: dict[Storable, Storable] = Field(
        {}, max_length=50, description="Free names and values to find jobs by."
    )
    model: Storable | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A base model, or a trained job_…:stage; a method needs one.",
    )
    dataset: Storable | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="ds_… of preference pairs (of texts too where the method is sft); a method needs one.",
    )
    eval_dataset: Storable | None = Field(
        None, min_length=1, max_length=200, description="Pairs to evaluate on, in place of a held-out share."
    )


class ResumeJob(BaseModel):
    """What to go on with: the configuration of splits, by the name of the stage."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, SplitStage | None]

    split: SplitStage | None = Field(
        None, description="Replaces the split's configuration; the split and what depends on it run anew."
    )

    def names(self) -> list[str]:
        """Every name that is given, with null too; `split` only where it has a configuration."""
        return [*([] if self.split is None else ["split"]), *self.__pydantic_extra__]

    def splits(self) -> dict[str, SplitStage]:
        """Those that are given, by the name of their stage."""
        given = {"split": self.split, **self.__pydantic_extra__}
        return {name: split for name, split in given.items() if split is not None}


class Progress(BaseModel):
    """How far a job has come; eta_seconds is null where nothing is known yet."""

    fraction: float
    eta_seconds: float | None


class StageProgress(Progress):
    """How far a stage has come, in steps of its own choice."""

    step: int
    total_steps: int | None


class Pause(BaseModel):
    """Why a job waits for a person."""

    reason: Literal["pause_after", "weak_reward_model", "user"]
    stage: str | None
    message: str


class StageError(BaseModel):
    """Why a stage failed; output is the end of what its process printed."""

    code: str
    message: str
    output: str | None = None


class JobError(StageError):
    """Why a job failed, and in which stage."""

    stage: str | None = None


class StageView(BaseModel):
    """A stage of a job."""

    name: str
    kind: str
    status: StageState
    cached: bool
    run_id: str | None
    attempt: int | None
    progress: StageProgress
    metrics: dict[str, Any]
    summary: dict[str, Any] | None
    artifacts: dict[str, str]
    config: dict[str, Any]
    inputs: dict[str, str | list[str]]
    seed: int
    started_at: Seconds | None
    finished_at: Seconds | None
    error: StageError | None


class JobView(BaseModel):
    """A job and its stages."""

    id: str
    object: Literal["job"] = "job"
    name: str
    status: JobState
    model: str | None
    dataset: str | None
    eval_dataset: str | None
    method: dict[str, Any]
    pause_after: list[str]
    seed: int
    priority: int
    labels: dict[str, str]
    stages: list[StageView]
    models: dict[str, str]
    queue_position: int | None = Field(
        description="Place from 1 in the queue of its slot class; null too where over a thousand come first."
    )
    pause: Pause | None
    progress: Progress
    created_at: Seconds
    started_at: Seconds | None
    finished_at: Seconds | None
    error: JobError | None


Basis = Literal["cached", "measured", "estimated"]


class PlannedStageView(BaseModel):
    """A stage of a job that was not created. Null where nobody can tell before it runs: problems say why."""

    name: str
    kind: str
    status: StageState = StageState.WAITING
    config: dict[str, Any]
    inputs: dict[str, str | list[str]]
    seed: int
    key: str
    cached: bool
    tokens: int | None = Field(
        None,
        description="Tokens that the stage works on: prompts and responses as it cuts them, once a pass over "
        "them. Trainings: over all epochs. ppo: episodes times epochs. evaluate: all models' answers with "
        "their prompts. Sampled responses count at their longest. Exact up to 512 rows where no split comes "
        "before; of more, from a sample, some 3 % off; a split's parts are taken to be as long as the whole.",
    )
    memory_bytes: int | None = Field(
        None,
        description="Peak memory: the process, all networks' weights in fp32, gradients, optimizer, the "
        "largest forward pass: of packed rows where the model is known to read them, else of padded ones. "
        "Of MPO_RANKS processes all together on a CPU, each on GPUs. "
        "How near it came is in docs/estimates.md; measured on a CPU, on a GPU not yet. What is above "
        "MPO_TRAINING_MEMORY_BYTES is refused, and a dry run names the nearest setting that fits.",
    )
    seconds: float | None = Field(
        None, description="Wall time once a slot is free; `basis` says where it comes from."
    )
    basis: Basis | None = Field(
        None,
        description="cached: the result is there, and seconds are 0. measured: scaled by how long your "
        "newest runs of this kind took, on their hardware; within a factor of 2 where models are alike. "
        "estimated: there is no such run; for two CPU cores, sure to a factor of 5 at best, or for MPO_RANKS "
        "GPUs of an A100's data sheet, where nothing was measured.",
    )
    problems: list[str] = Field([], description="What to read before the job is submitted.")


class DryRunView(BaseModel):
    """What a job would do: a job without id."""

    object: Literal["job"] = "job"
    name: str
    status: JobState = JobState.QUEUED
    model: str | None
    dataset: str | None
    eval_dataset: str | None
    method: dict[str, Any]
    pause_after: list[str]
    seed: int
    priority: int
    labels: dict[str, str]
    stages: list[PlannedStageView]


class EventView(BaseModel):
    """Something that happened in a job."""

    id: int
    object: Literal["event"] = "event"
    type: str
    created_at: Seconds
    stage: str | None
    message: str
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events, oldest first."""

    object: Literal["list"] = "list"
    data: list[EventView]
    first_id: int | None
    last_id: int | None
    has_more: bool


class MetricSeries(BaseModel):
    """One metric of one stage by step."""

    stage: str
    name: str
    steps: list[int]
    values: list[float | None]


class MetricList(BaseModel):
    """Metrics of a job, in the order of its stages."""

    object: Literal["list"] = "list"
    data: list[MetricSeries]
