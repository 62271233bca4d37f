"""From a spec to a plan, from a plan to rows, and back from rows to a plan."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from app.jobs.schemas import CreateJob
from core.errors import Unprocessable
from core.tables import StageRow
from mpo.config import Stage
from mpo.job_spec import MPOMethod
from mpo.plan import PlannedStage, Source, expand, resolve

_STAGE: TypeAdapter[Stage] = TypeAdapter(Stage)


def plan_spec(spec: CreateJob, context_tokens: int) -> list[PlannedStage]:
    """The stages of a spec with every length set; raises Unprocessable naming the field."""
    stages = expand(spec, model=spec.model, dataset=spec.dataset)
    names = [stage.name for stage in stages]
    for index, name in enumerate(spec.pause_after):
        if name not in names:
            raise Unprocessable(
                f"pause_after names no stage of this job: its stages are {', '.join(names)}",
                loc=("body", "pause_after", index),
            )
    return [_resolved(spec, stage, context_tokens) for stage in stages]


def resolved_method(spec: CreateJob, stages: Iterable[PlannedStage]) -> dict[str, Any]:
    """The method as it will run: every default and every length written out."""
    configs = {stage.name: stage.config.model_dump(mode="json") for stage in stages}
    names = [name for name in type(spec.method).model_fields if name != "type"]
    return {"type": spec.method.type, **{name: configs.get(name) for name in names}}


def stage_row(job_id: str, position: int, stage: PlannedStage, key: str) -> StageRow:
    """A planned stage as the database keeps it."""
    return StageRow(
        job_id=job_id,
        name=stage.name,
        position=position,
        rank=stage.rank,
        kind=stage.kind,
        slot=stage.config.slot,
        config=stage.config.model_dump(mode="json"),
        inputs={role: [vars(source) for source in sources] for role, sources in stage.inputs.items()},
        seed=stage.seed,
        key=key,
    )


def planned_stages(rows: Iterable[StageRow]) -> list[PlannedStage]:
    """The plan that the rows were made from, with the configuration that they hold now."""
    return [
        PlannedStage(row.name, _STAGE.validate_python(row.config), _sources(row.inputs), row.seed)
        for row in rows
    ]


def _sources(inputs: Mapping[str, list[dict[str, str]]]) -> dict[str, tuple[Source, ...]]:
    return {role: tuple(Source(**source) for source in sources) for role, sources in inputs.items()}  # type: ignore[arg-type]


def _resolved(spec: CreateJob, stage: PlannedStage, context_tokens: int) -> PlannedStage:
    try:
        return resolve([stage], context_tokens)[0]
    except ValueError as error:
        loc = ("body", "method", _field_of(spec.method, stage.name), "max_prompt_tokens")
        raise Unprocessable(f"{stage.name}: {error}", loc=loc) from error


def _field_of(method: MPOMethod, stage_name: str) -> str:
    """The field that configures a stage: folds and the default judge are trained as reward_model says."""
    if stage_name in type(method).model_fields and getattr(method, stage_name) is not None:
        return stage_name
    return "reward_model"
