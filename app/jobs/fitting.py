"""Refuses jobs whose stages need more memory than trainings have."""

from app.jobs.estimating import stage_costs
from app.jobs.excess import NotEnoughMemory
from app.jobs.planning import Plan, field_loc
from app.jobs.schemas import CreateJob
from core.database import Transaction
from core.settings import settings
from core.work_lookup import finished_keys


def refuse_what_does_not_fit(tx: Transaction, owner: str, spec: CreateJob, plan: Plan) -> None:
    """Raises NotEnoughMemory for the first stage that has to run and does not fit; never without a limit, nor
    for one whose rows nobody has counted yet."""
    if not settings().training_memory_bytes:
        return
    costs = stage_costs(tx.session, owner, plan.stages, plan.leaves, plan.keys)
    excess = {stage.name: found for stage in plan.stages if (found := costs[stage.name].excess) is not None}
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
