"""Lists: keyset pages over ids, which sort by their time of making."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import Unprocessable
from core.ids import PREFIXES, Noun, is_id

T = TypeVar("T")
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=100, description="Objects a page.")]
After = Annotated[str | None, Query(description="Id of the last object of the page before.", max_length=200)]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of making.")]


class Page(BaseModel, Generic[T]):
    """A page of a list. Ask for the next with `after=last_id` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


@dataclass(frozen=True)
class PageQuery:
    """Which page is asked for."""

    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"

    @property
    def descending(self) -> bool:
        """Newest first."""
        return self.order == "desc"


async def _page_query(limit: Limit = 20, after: After = None, order: Order = "desc") -> PageQuery:
    return PageQuery(limit, after, order)


async def _row_query(limit: Limit = 20, after: After = None, order: Order = "asc") -> PageQuery:
    return PageQuery(limit, after, order)


PageDep = Annotated[PageQuery, Depends(_page_query)]
RowPageDep = Annotated[PageQuery, Depends(_row_query)]
"""For rows of one object, which come in their own order."""


def place_after(query: PageQuery, noun: Noun) -> str | None:
    """The id behind which the page begins; raises Unprocessable where it is no id of the noun.

    The object itself may be gone: an id tells by itself where it stood, so pages go on behind it.
    """
    if query.after is not None and not is_id(noun, query.after):
        raise Unprocessable(
            f"Should be an id like {PREFIXES[noun]}_…: a page's last_id", loc=("query", "after")
        )
    return query.after


def list_page(
    session: Session,
    statement: Select[Any],
    id_column: InstrumentedAttribute[str],
    noun: Noun,
    query: PageQuery,
    view: Callable[[Row], T],
) -> Page[T]:
    """One page of a statement over one mapped class: never an offset, so that new rows shift no page."""
    after = place_after(query, noun)
    if after is not None:
        beyond = id_column < after if query.descending else id_column > after
        statement = statement.where(beyond)
    statement = statement.order_by(id_column.desc() if query.descending else id_column.asc())
    rows: list[Row] = list(session.scalars(statement.limit(query.limit + 1)))
    return page_of(rows, query.limit, lambda row: str(getattr(row, id_column.key)), view)


def page_of(rows: list[Row], limit: int, id_of: Callable[[Row], str], view: Callable[[Row], T]) -> Page[T]:
    """The page of at most `limit` rows out of one more than were asked for."""
    shown = rows[:limit]
    return Page(
        data=[view(row) for row in shown],
        first_id=id_of(shown[0]) if shown else None,
        last_id=id_of(shown[-1]) if shown else None,
        has_more=len(rows) > limit,
    )
