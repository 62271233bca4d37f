"""Rows by id and owner: what is another owner's, or deleted, is not there."""

from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import NotFound
from core.tables import Comparison, Dataset, Evaluation

Owned = TypeVar("Owned", Comparison, Dataset, Evaluation)


def find_owned(
    session: Session, table: type[Owned], owner: str, id_: str, *, for_update: bool = False
) -> Owned:
    """The owner's row; raises NotFound. for_update: locked until the transaction ends."""
    mine = table.id == id_, table.owner == owner, table.deleted_at.is_(None)
    statement = select(table).where(*mine)
    found = session.scalar(statement.with_for_update() if for_update else statement)
    if found is None:
        raise NotFound(f"There is no {table.__name__.lower()} {id_!r}")
    return found
