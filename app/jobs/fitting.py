"""Refuses jobs whose stages need more memory than trainings have."""

from collections.abc import Mapping

from app.jobs.blueprints import Kept
from app.jobs.estimating import stage_costs
from app.jobs.planning import Plan, field_loc
from app.jobs.schemas import CreateJob
from core.database import Transaction
from core.errors import Unprocessable
from core.settings import settings
from core.work_lookup import finished_keys
from mpo.estimates_excess import Excess

# Counted once for all jobs of a plan: it takes several times as long as all else of a submission.
_excesses: Kept[Mapping[str, Excess]] = Kept()


class NotEnoughMemory(Unprocessable):
    """A stage is estimated to need more memory than trainings have here. `nearest` is what fits, or null."""

    code, title = "not_enough_memory", "Not enough memory"


class _NotCounted(Exception):
    """A stage's memory cannot be told now, as its model cannot be read: nothing is refused, nor kept."""


def refuse_what_does_not_fit(tx: Transaction, owner: str, spec: CreateJob, plan: Plan) -> None:
    """Raises NotEnoughMemory for the first stage that has to run and does not fit; never without a limit, nor
    for one whose rows nobody has counted yet."""
    limit = settings().training_memory_bytes
    if not limit:
        return
    trained_on = settings().training_device, settings().ranks, settings().sharded
    try:
        excess = _excesses.get((plan.of, limit, trained_on), lambda: _excess(tx, owner, plan))
    except _NotCounted:
        return
    done = finished_keys(tx.session, owner, [plan.keys[name] for name in excess])
    for stage in plan.stages:
        if stage.name not in excess or plan.keys[stage.name] in done:
            continue
        found = excess[stage.name]
        field = next(iter(found.nearest or {}), "lora")
        raise NotEnoughMemory(
            found.detail,
            loc=field_loc(spec, stage, field),
            stage=stage.name,
            memory_bytes=found.memory_bytes,
            limit_bytes=found.limit_bytes,
            nearest=found.nearest,
            nearest_bytes=found.nearest_bytes,
        )


def _excess(tx: Transaction, owner: str, plan: Plan) -> Mapping[str, Excess]:
    """By stage, of those that do not fit."""
    # No scores are looked up by their keys: they tell how many rows a part has, and memory asks how long.
    costs = stage_costs(tx.session, owner, plan.stages, plan.leaves, {})
    if any(cost.memory_bytes is None for cost in costs.values()):
        raise _NotCounted
    return {name: cost.excess for name, cost in costs.items() if cost.excess is not None}
