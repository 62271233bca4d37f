"""What specs came to before, kept in this process: making a plan costs more than all its rows.

A plan depends on the spec and on a few facts of the datasets and models that it names, and on nothing else;
of a preset, only seeds and keys depend on the job's seed. Whoever asks has looked those facts up anew.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from app.jobs.insertion import WrittenStages, written_stages
from app.jobs.leaves import Leaves, Loc
from app.jobs.schemas import CreateJob
from mpo.keys import KeyParts, key_parts
from mpo.plan import PlannedStage, Source, plan_warnings, ranks
from mpo.roles import MADE
from mpo.stage_graph import lineages

KEPT = 256
T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """The stages that a spec expands to, lengths still open, and where it names what no stage makes."""

    stages: list[PlannedStage]
    named: Mapping[Source, Loc]


@dataclass(frozen=True)
class Blueprint:
    """Stages with every length set, and what follows from them. columns: of `StageRow`, by stage: those that
    no job, key or seed changes. Shared by all jobs made from it: nobody changes what it holds."""

    stages: list[PlannedStage]
    parts: Mapping[str, KeyParts]
    columns: Mapping[str, Mapping[str, Any]]
    written: WrittenStages
    warnings: Mapping[str, Sequence[str]]
    method: dict[str, Any]


class Kept(Generic[T]):
    """The newest results of a pure function, by what they depend on. An error is kept nowhere."""

    def __init__(self) -> None:
        self._cell = lru_cache(maxsize=KEPT)(self._empty)

    def get(self, of: Hashable, make: Callable[[], T]) -> T:
        """The result for `of`, made now where it is not kept. Two threads may both make it."""
        cell = self._cell(of)
        if not cell:
            cell.append(make())
        return cell[0]

    @staticmethod
    def _empty(_of: Hashable) -> list[T]:
        return []


def asked_by(spec: CreateJob) -> Hashable:
    """What of a spec its plan depends on; of a preset without the seed."""
    given = spec.model, spec.dataset, spec.eval_dataset, tuple(spec.pause_after)
    if spec.method is not None:
        return (spec.method.model_dump_json(exclude_unset=True), *given)
    return (*(node.model_dump_json(exclude_unset=True) for node in spec.stages or []), spec.seed, *given)


def facts_of(leaves: Leaves) -> Hashable:
    """What of the leaves a plan depends on."""
    rows = [(s.name, d.status, d.rows, d.rows_location) for s, d in leaves.datasets.items()]
    models = [
        (s.name, b.name, b.sha256, b.context_tokens, b.has_chat_template) for s, b in leaves.models.items()
    ]
    return tuple(leaves.things.items()), tuple(rows), tuple(models)


def blueprint_of(stages: list[PlannedStage], method: dict[str, Any]) -> Blueprint:
    """What follows from stages whose lengths are set. method: as it will run."""
    parts = {stage.name: key_parts(stage.config) for stage in stages}
    columns = columns_of(stages)
    return Blueprint(stages, parts, columns, written_stages(columns), plan_warnings(stages), method)


def columns_of(stages: Sequence[PlannedStage]) -> dict[str, dict[str, Any]]:
    """Columns of `StageRow` by stage, but for job, seed and key."""
    rank, lineage = ranks(stages), lineages(stages)
    return {
        stage.name: {
            "name": stage.name,
            "position": position,
            "rank": rank[stage.name],
            "kind": stage.kind,
            "slot": stage.config.slot,
            "config": stage.config.model_dump(mode="json"),
            "inputs": {role: [vars(source) for source in sources] for role, sources in stage.inputs.items()},
            "base": _base(stage, lineage[stage.name].start),
        }
        for position, stage in enumerate(stages)
    }


def _base(stage: PlannedStage, start: Source | None) -> str | None:
    return start.name if start is not None and "model" in MADE.get(stage.kind, {}) else None
