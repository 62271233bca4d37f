"""Base and trained models as one table, so that one keyset pages over both."""

from typing import Any

from sqlalchemy import Row, Subquery, case, func, literal, null, select, tuple_, union_all
from sqlalchemy.orm import Session

from app.models.schemas import ModelView
from app.pagination import Page, PageQuery, page_of
from core.errors import Unprocessable
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
    row = find_model_row(session, owner, name)
    return ModelView.model_validate(row) if row is not None else None


def find_model_row(session: Session, owner: str, name: str) -> Row[Any] | None:
    """The same, its time of making as exact as the database has it."""
    models = _models(owner)
    return session.execute(select(models).where(models.c.id == name)).one_or_none()


def models_page(session: Session, owner: str, query: PageQuery) -> Page[ModelView]:
    """A page of the models that an owner may use, by time of making."""
    models = _models(owner)
    place = tuple_(models.c.created, models.c.id)
    statement = select(models)
    if query.after is not None:
        last = find_model_row(session, owner, query.after)
        if last is None:
            # Unlike an id, a name does not tell where it stood.
            raise Unprocessable("Should be the id of a model that there is", loc=("query", "after"))
        after = tuple_(literal(last.created), literal(last.id))
        statement = statement.where(place < after if query.descending else place > after)
    down = query.descending
    order = [column.desc() if down else column.asc() for column in (models.c.created, models.c.id)]
    rows = list(session.execute(statement.order_by(*order).limit(query.limit + 1)))
    return page_of(rows, query.limit, lambda row: str(row.id), ModelView.model_validate)
