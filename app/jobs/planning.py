"""From a spec to a plan, from a plan to rows, and back from rows to a plan."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from app.jobs.blueprints import Blueprint, Draft, Kept, asked_by, blueprint_of, columns_of, facts_of
from app.jobs.leaves import Leaves, Loc, find_leaves, refuse_unusable
from app.jobs.prompt_groups import refuse_lone_rows, refuse_too_few_prompts
from app.jobs.schemas import CreateJob
from core.database import Transaction
from core.errors import Unprocessable
from core.tables import StageRow
from mpo.config import Stage
from mpo.errors import InvalidSpec
from mpo.explicit_stages import named_leaf
from mpo.plan import PlannedStage, Source, check_plan, expand, plan_keys, resolve
from mpo.presets import reseeded
from mpo.roles import ROLES

EXPLICIT = "stages"
"""Type of a method that is written out as stages."""

_STAGE: TypeAdapter[Stage] = TypeAdapter(Stage)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


_drafts: Kept[Draft] = Kept()
_blueprints: Kept[Blueprint] = Kept()


@dataclass(frozen=True)
class Plan:
    """What a spec comes to: its stages in order, with every length set, their keys, and their leaves.

    of: all that the blueprint depends on, and what its stages cost.
    """

    stages: list[PlannedStage]
    keys: dict[str, str]
    leaves: Leaves
    blueprint: Blueprint
    of: Hashable


FoundLeaves = dict[tuple[Source, ...], Leaves]
"""Leaves of one owner that a transaction holds, by what was named."""


def plan_spec(tx: Transaction, owner: str, spec: CreateJob, found: FoundLeaves | None = None) -> Plan:
    """The plan of a spec, its datasets and models held; raises what refuses it, naming the field.

    found: those that are held already, of this owner; what is looked up is added.
    """
    asked = asked_by(spec)
    try:
        draft = _drafts.get(asked, lambda: _draft(spec))
        leaves = _held_leaves(tx, owner, draft, {} if found is None else found)
        of = asked, facts_of(leaves)
        known = _blueprints.get(of, lambda: _blueprint(spec, draft, leaves))
    except InvalidSpec as error:
        raise Unprocessable(error.detail, loc=_in_body(error)) from error
    stages = known.stages if spec.method is None else reseeded(known.stages, spec.seed)
    return Plan(stages, plan_keys(stages, leaves.keys, parts=known.parts), leaves, known, of)


def _held_leaves(tx: Transaction, owner: str, draft: Draft, found: FoundLeaves) -> Leaves:
    named = tuple(draft.named)
    if named not in found:
        found[named] = find_leaves(tx, owner, draft.named)
    return found[named]


def _draft(spec: CreateJob) -> Draft:
    stages = expand(spec, model=spec.model, dataset=spec.dataset, leaf=_service_leaf)
    _check_names(spec, stages)
    return Draft(stages, _named(spec, stages))


def _blueprint(spec: CreateJob, draft: Draft, leaves: Leaves) -> Blueprint:
    check_plan(spec, draft.stages, leaves.things)
    refuse_unusable(leaves, draft.stages, {stage.name: _model_loc(spec, stage) for stage in draft.stages})
    refuse_too_few_prompts(leaves, draft.stages, partial(field_loc, spec))
    refuse_lone_rows(leaves, draft.stages, draft.named)
    contexts = leaves.contexts()
    stages = resolve(spec, draft.stages, min(contexts.values(), default=0), contexts)
    return blueprint_of(stages, resolved_method(spec, stages))


def resolved_method(spec: CreateJob, stages: Iterable[PlannedStage]) -> dict[str, Any]:
    """The method as it will run: every default and every length written out."""
    if spec.method is None:
        return {"type": EXPLICIT}
    configs = {stage.name: stage.config.model_dump(mode="json") for stage in stages}
    names = [name for name in type(spec.method).model_fields if name != "type"]
    return {"type": spec.method.type, **{name: configs.get(name) for name in names}}


def rows_of_plan(job_id: str, stages: Sequence[PlannedStage], keys: Mapping[str, str]) -> list[StageRow]:
    """Planned stages as the database keeps them."""
    columns = columns_of(stages)
    return [
        StageRow(job_id=job_id, seed=stage.seed, key=keys[stage.name], **columns[stage.name])
        for stage in stages
    ]


def planned_stages(rows: Iterable[StageRow]) -> list[PlannedStage]:
    """The plan that the rows were made from, with the configuration that they hold now."""
    return [
        PlannedStage(row.name, _STAGE.validate_python(row.config), sources_of(row), row.seed) for row in rows
    ]


def sources_of(row: StageRow) -> dict[str, tuple[Source, ...]]:
    """The inputs of a stage by role."""
    return {
        role: tuple(Source(**source) for source in sources)  # type: ignore[arg-type]
        for role, sources in row.inputs.items()
    }


def written_inputs(kind: str, inputs: Mapping[str, Sequence[Source]]) -> dict[str, str | list[str]]:
    """Inputs as an explicit stage writes them."""
    return {
        role: [str(source) for source in sources] if ROLES[kind][role].several else str(sources[0])
        for role, sources in inputs.items()
    }


def _service_leaf(name: str) -> Source | None:
    return named_leaf(name) if _NAME.fullmatch(name) else None


def _check_names(spec: CreateJob, stages: Sequence[PlannedStage]) -> None:
    names = [stage.name for stage in stages]
    for index, name in enumerate(spec.pause_after):
        if name not in names:
            raise Unprocessable(
                f"pause_after names no stage of this job: its stages are {', '.join(names)}",
                loc=("body", "pause_after", index),
            )
    if spec.method is None:
        read = {source for stage in stages for source in stage.sources()}
        for field, source in _leaf_fields(spec):
            if source not in read:
                raise Unprocessable(
                    f"No stage reads {field}: name it in the inputs of a stage, or leave it out",
                    loc=("body", field),
                )


def _leaf_fields(spec: CreateJob) -> list[tuple[str, Source]]:
    """The fields beside method and stages that name a model or a dataset, and what they name."""
    kinds = (("model", Source.model), ("dataset", Source.dataset), ("eval_dataset", Source.dataset))
    return [(field, kind(name)) for field, kind in kinds if (name := getattr(spec, field)) is not None]


def _named(spec: CreateJob, stages: Sequence[PlannedStage]) -> dict[Source, Loc]:
    """Every dataset and model that the spec names, and the field that does so first."""
    found: dict[Source, Loc] = {}
    for field, source in _leaf_fields(spec):
        found.setdefault(source, ("body", field))
    by_name = {stage.name: stage for stage in stages}
    for place, node in enumerate(spec.stages or []):
        for role, sources in by_name[node.name].inputs.items():
            listed = isinstance(node.inputs[role], list)
            for item, source in enumerate(sources):
                if source.kind != "stage":
                    loc: Loc = ("body", "stages", place, "inputs", role, *([item] if listed else []))
                    found.setdefault(source, loc)
    return found


def _model_loc(spec: CreateJob, stage: PlannedStage) -> Loc:
    if spec.method is not None:
        return ("body", "model")
    place = next(i for i, node in enumerate(spec.stages or []) if node.name == stage.name)
    return ("body", "stages", place, "inputs")


def field_loc(spec: CreateJob, stage: PlannedStage, field: str) -> Loc:
    """Where the spec writes a field of a stage's configuration."""
    if spec.method is not None:
        return ("body", "method", stage.name, field)
    return (*_model_loc(spec, stage)[:-1], field)


def _in_body(error: InvalidSpec) -> Loc:
    loc = error.facts["loc"]
    assert isinstance(loc, tuple)
    return ("body", *loc)
