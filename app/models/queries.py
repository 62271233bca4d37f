"""Base and trained models as one table, so that one keyset pages over both."""

from sqlalchemy import Subquery, case, func, literal, null, select, tuple_, union_all
from sqlalchemy.orm import Session

from app.models.schemas import ModelView
from app.pagination import Page, PageQuery, page_of
from core.states import StageState
from core.tables import BaseModelRow, Job, StageRow


def _models(owner: str) -> Subquery:
    base = select(
        BaseModelRow.name.label("id"),
        BaseModelRow.created_at.label("created"),
        BaseModelRow.owner.label("owned_by"),
        BaseModelRow.kind.label("kind"),
        null().label("base"),
        null().label("job"),
        null().label("stage"),
    ).where(BaseModelRow.deleted_at.is_(None))
    trained = (
        select(
            (Job.id + literal(":") + StageRow.name).label("id"),
            func.coalesce(StageRow.finished_at, Job.created_at).label("created"),
            Job.owner.label("owned_by"),
            case((StageRow.kind == "reward_model", "reward_model"), else_="policy").label("kind"),
            StageRow.base.label("base"),
            Job.id.label("job"),
            StageRow.name.label("stage"),
        )
        .join(Job, Job.id == StageRow.job_id)
        .where(
            Job.owner == owner,
            Job.deleted_at.is_(None),
            StageRow.status == StageState.SUCCEEDED,
            StageRow.artifacts.has_key("model"),
        )
    )
    return union_all(base, trained).subquery("models")


def find_model(session: Session, owner: str, name: str) -> ModelView | None:
    """The model that an owner knows by this name."""
    models = _models(owner)
    row = session.execute(select(models).where(models.c.id == name)).one_or_none()
    return ModelView.model_validate(row) if row is not None else None


def models_page(session: Session, owner: str, query: PageQuery) -> Page[ModelView]:
    """A page of the models that an owner may use, by time of making."""
    models = _models(owner)
    place = tuple_(models.c.created, models.c.id)
    statement = select(models)
    if query.after is not None:
        other = _models(owner)
        after = select(other.c.created, other.c.id).where(other.c.id == query.after)
        beyond = place < after.scalar_subquery() if query.descending else place > after.scalar_subquery()
        statement = statement.where(beyond)
    down = query.descending
    order = [column.desc() if down else column.asc() for column in (models.c.created, models.c.id)]
    rows = list(session.execute(statement.order_by(*order).limit(query.limit + 1)))
    return page_of(rows, query.limit, lambda row: str(row.id), ModelView.model_validate)
