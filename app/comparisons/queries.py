"""Comparisons by what they use."""

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from core.states import FINISHED_JOB
from core.tables import Comparison


def live_comparison_of(session: Session, models: Sequence[str]) -> str | None:
    """Id of an unfinished comparison in which one of the models answers or scores; else None."""
    scorer = Comparison.request["scorer"]["reward_model"].astext
    uses_one = or_(Comparison.models.overlap(models), scorer.in_(models))
    return session.scalar(
        select(Comparison.id).where(uses_one, Comparison.status.not_in(FINISHED_JOB)).limit(1)
    )
