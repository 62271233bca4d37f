"""What a spec would come to: its stages and what each of them costs, without making a job."""

from app.jobs.estimating import StageCost, stage_costs
from app.jobs.past_runs import PastRun, factor_for, past_runs
from app.jobs.planning import plan_spec, resolved_method, written_inputs
from app.jobs.schemas import Basis, CreateJob, DryRunView, PlannedStageView
from core.database import Transaction
from core.work_lookup import finished_keys
from mpo.plan import PlannedStage, plan_warnings


def plan_job(tx: Transaction, owner: str, spec: CreateJob) -> DryRunView:
    """What `create_job` would do, without doing it; what is cached is a forecast."""
    plan = plan_spec(tx, owner, spec)
    cached, warnings = finished_keys(tx.session, owner, plan.keys.values()), plan_warnings(plan.stages)
    costs = stage_costs(tx.session, owner, plan.stages, plan.leaves, plan.keys)
    runs = past_runs(tx.session, owner)
    views = []
    for stage in plan.stages:
        cost, is_cached = costs[stage.name], plan.keys[stage.name] in cached
        seconds, basis = _seconds(stage, cost, is_cached, runs)
        view = PlannedStageView(
            name=stage.name,
            kind=stage.kind,
            config=stage.config.model_dump(mode="json"),
            inputs=written_inputs(stage.kind, stage.inputs),
            seed=stage.seed,
            key=plan.keys[stage.name],
            cached=is_cached,
            tokens=cost.tokens,
            memory_bytes=cost.memory_bytes,
            seconds=seconds,
            basis=basis,
            problems=[*warnings.get(stage.name, []), *cost.problems],
        )
        views.append(view)
    given = spec.model_dump(include=set(DryRunView.model_fields) - {"method", "stages"})
    return DryRunView(**given, method=resolved_method(spec, plan.stages), stages=views)


def _seconds(
    stage: PlannedStage, cost: StageCost, cached: bool, runs: list[PastRun]
) -> tuple[float | None, Basis | None]:
    if cached:
        return 0.0, "cached"
    if cost.assumed_seconds is None:
        return None, None
    factor = factor_for(stage.kind, cost.parameters, runs)
    if factor is None:
        return round(cost.assumed_seconds, 1), "estimated"
    return round(cost.assumed_seconds * factor, 1), "measured"
