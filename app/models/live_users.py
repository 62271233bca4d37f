"""What has not finished and uses a model, besides jobs: it is not deleted meanwhile."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.comparisons.queries import live_comparison_of
from app.evaluations.queries import live_evaluation_of


def live_user_of(session: Session, models: Sequence[str]) -> str | None:
    """Id of an unfinished comparison or evaluation that uses one of the models; else None."""
    return live_comparison_of(session, models) or live_evaluation_of(session, models)
