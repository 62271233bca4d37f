"""Evaluations by what they use."""

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from core.states import FINISHED_JOB
from core.tables import Evaluation

SINGLE_ROLES = ("judge", "reward_model", "sft", "dpo")
"""Roles of one model each, besides the models that are evaluated; a request names them so."""


def live_evaluation_of(session: Session, models: Sequence[str]) -> str | None:
    """Id of an unfinished evaluation that uses one of the models, in whatever role; else None."""
    in_a_role = [Evaluation.request[role].astext.in_(models) for role in SINGLE_ROLES]
    uses_one = or_(Evaluation.models.overlap(models), *in_a_role)
    return session.scalar(
        select(Evaluation.id).where(uses_one, Evaluation.status.not_in(FINISHED_JOB)).limit(1)
    )
