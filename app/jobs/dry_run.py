"""What a spec would come to: its stages and what each of them costs, without making a job."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.planning import plan_spec, resolved_method, written_inputs
from app.jobs.schemas import CreateJob, DryRunView, PlannedStageView
from core.database import Transaction
from core.tables import Artifact
from mpo.plan import plan_warnings


def plan_job(tx: Transaction, owner: str, spec: CreateJob) -> DryRunView:
    """What `create_job` would do, without doing it; what is cached is a forecast."""
    plan = plan_spec(tx, owner, spec)
    cached, warnings = _cached_keys(tx.session, owner, plan.keys), plan_warnings(plan.stages)
    views = [
        PlannedStageView(
            name=stage.name,
            kind=stage.kind,
            config=stage.config.model_dump(mode="json"),
            inputs=written_inputs(stage.kind, stage.inputs),
            seed=stage.seed,
            key=plan.keys[stage.name],
            cached=plan.keys[stage.name] in cached,
            problems=warnings.get(stage.name, []),
        )
        for stage in plan.stages
    ]
    given = spec.model_dump(include=set(DryRunView.model_fields) - {"method", "stages"})
    return DryRunView(**given, method=resolved_method(spec, plan.stages), stages=views)


def _cached_keys(session: Session, owner: str, keys: Mapping[str, str]) -> set[str]:
    statement = select(Artifact.key).where(
        Artifact.owner == owner, Artifact.key.in_(keys.values()), Artifact.deleted_at.is_(None)
    )
    return set(session.scalars(statement))
