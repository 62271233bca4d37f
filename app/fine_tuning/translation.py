"""Between OpenAI's words for a job and this service's: nothing here knows how a job is done."""

import time
from collections.abc import Mapping
from typing import Any

from app.fine_tuning.schemas import (
    DPO,
    MPO,
    Checkpoint,
    DPOHyperparameters,
    FineTuningCreate,
    FineTuningEvent,
    FineTuningJob,
    Hyperparameters,
    JobError,
    Status,
    Supervised,
)
from app.jobs.schemas import CreateJob, EventView, JobView
from app.validation import parse_body
from core.states import DatasetState, JobState, StageState
from mpo.config import DPOStage, SFTStage

LAST_STAGES = ("ppo", "dpo", "sft", "reward_model")
"""Of the models that a job makes, the one it is for."""
NAMES = {"n_epochs": "epochs", "batch_size": "batch_pairs", "beta": "beta"}


def native_spec(body: FineTuningCreate) -> CreateJob:
    """The job that is asked for; raises what refuses a native spec, under the names of the native one."""
    spec: dict[str, Any] = {
        "name": body.suffix or "",
        "model": body.model,
        "dataset": body.training_file,
        "method": _method(body),
        "labels": body.metadata or {},
    }
    if body.validation_file is not None:
        spec["eval_dataset"] = body.validation_file
    if body.seed is not None:
        spec["seed"] = body.seed
    return parse_body(CreateJob, spec)


def _method(body: FineTuningCreate) -> dict[str, Any]:
    match body.method:
        case Supervised(supervised=method):
            return {"type": "sft", "sft": _stage(method.hyperparameters, SFTStage)}
        case DPO(dpo=dpo):
            return {"type": "dpo", "dpo": _stage(dpo.hyperparameters, DPOStage)}
        case MPO(mpo=native):
            return {**native, "type": "mpo"}
    if body.hyperparameters is not None:
        return {"type": "sft", "sft": _stage(body.hyperparameters, SFTStage)}
    return {"type": "mpo"}


def _stage(given: Hyperparameters | DPOHyperparameters, stage: type[SFTStage | DPOStage]) -> dict[str, Any]:
    named = {NAMES[name]: value for name, value in given.model_dump().items() if value and name in NAMES}
    if given.learning_rate_multiplier is not None:
        named["learning_rate"] = stage().learning_rate * given.learning_rate_multiplier
    return named


def fine_tuning_job(job: JobView, dataset_state: str | None) -> FineTuningJob:
    """A job in OpenAI's shape. dataset_state: of its training file."""
    return FineTuningJob(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        estimated_finish=_estimated_finish(job),
        error=_error(job),
        model=job.model or "",
        fine_tuned_model=_last_model(job) if job.status == JobState.SUCCEEDED else None,
        organization_id="",
        status=_status(job, dataset_state),
        training_file=job.dataset or "",
        validation_file=job.eval_dataset,
        hyperparameters=_hyperparameters(job.method),
        method=_openai_method(job.method),
        seed=job.seed,
        metadata=job.labels,
    )


def _status(job: JobView, dataset_state: str | None) -> Status:
    waits = job.status in (JobState.QUEUED, JobState.RUNNING) and dataset_state == DatasetState.VALIDATING
    return "validating_files" if waits else job.status.value


def _estimated_finish(job: JobView) -> int | None:
    seconds = job.progress.eta_seconds
    return int(time.time() + seconds) if seconds is not None and job.finished_at is None else None


def _error(job: JobView) -> JobError | None:
    if job.error is None:
        return None
    return JobError(code=job.error.code, message=job.error.message, param=job.error.stage)


def _last_model(job: JobView) -> str | None:
    return next((job.models[name] for name in LAST_STAGES if name in job.models), None)


def _openai_method(method: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"sft": "supervised"}.get(method.get("type", ""), method.get("type", "mpo"))
    if kind not in ("supervised", "dpo"):
        return {"type": kind, kind: {name: value for name, value in method.items() if name != "type"}}
    return {"type": kind, kind: {"hyperparameters": _hyperparameters(method)}}


def _hyperparameters(method: Mapping[str, Any]) -> dict[str, Any]:
    stage = method.get(method.get("type", "")) or {}
    return {theirs: stage[ours] for theirs, ours in NAMES.items() if ours in stage}


def fine_tuning_event(event: EventView) -> FineTuningEvent:
    """An event in OpenAI's shape."""
    level = (
        "error" if event.type.endswith(".failed") else "warn" if event.type.endswith(".warning") else "info"
    )
    return FineTuningEvent(
        id=f"ftevent-{event.id}",
        created_at=event.created_at,
        level=level,
        message=event.message,
        type="metrics" if event.type == "stage.progress" else "message",
        data={**event.data, "type": event.type, "stage": event.stage},
    )


def checkpoints(job: JobView) -> list[Checkpoint]:
    """The models that a job has made so far, newest first."""
    made = [
        Checkpoint(
            id=f"ftckpt-{job.id}-{stage.name}",
            created_at=stage.finished_at or job.created_at,
            fine_tuned_model_checkpoint=job.models[stage.name],
            fine_tuning_job_id=job.id,
            metrics={"step": stage.progress.step, **_numbers(stage.metrics)},
            step_number=stage.progress.step,
        )
        for stage in job.stages
        if stage.name in job.models and stage.status == StageState.SUCCEEDED
    ]
    return sorted(made, key=lambda each: each.created_at, reverse=True)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
