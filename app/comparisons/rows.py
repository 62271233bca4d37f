"""A comparison's rows as people see them: of a blind one, sides in place of models until they have voted."""

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparisons.schemas import ComparisonRowView
from core.tables import Comparison, ComparisonRow, Vote

SIDES = ("A", "B")


def row_views(
    session: Session, comparison: Comparison, rows: Sequence[ComparisonRow]
) -> list[ComparisonRowView]:
    """Rows in the given order, each with how people have voted on it."""
    votes = _votes(session, comparison, rows)
    blind = bool(comparison.request.get("blind"))
    return [_view(comparison, row, votes.get(row.index, []), blind=blind) for row in rows]


def sides_of(comparison: Comparison, row: int) -> list[str]:
    """The models that stand at A and B: of a blind comparison, shuffled by row."""
    models = list(comparison.models[:2])
    if comparison.request.get("blind"):
        digest = hashlib.sha256(f"{comparison.id}:{row}".encode()).digest()
        models = models[::-1] if digest[0] & 1 else models
    return models


def _votes(session: Session, comparison: Comparison, rows: Sequence[ComparisonRow]) -> dict[int, list[Vote]]:
    numbers = [row.index for row in rows]
    statement = select(Vote).where(Vote.comparison_id == comparison.id, Vote.row.in_(numbers))
    found: dict[int, list[Vote]] = {}
    for vote in session.scalars(statement.order_by(Vote.row, Vote.created_at, Vote.annotator)):
        found.setdefault(vote.row, []).append(vote)
    return found


def _view(comparison: Comparison, row: ComparisonRow, votes: list[Vote], *, blind: bool) -> ComparisonRowView:
    told = [{"annotator": vote.annotator, "preferred": vote.preferred} for vote in votes]
    responses: list[dict[str, Any]] = row.responses
    if len(comparison.models) == 2:
        sides = sides_of(comparison, row.index)
        responses = sorted(responses, key=lambda response: sides.index(response["model"]))
        responses = [{**each, "side": SIDES[sides.index(each["model"])]} for each in responses]
    if blind and not votes:
        # The score too would tell which is which, once a few are known.
        responses = [{**each, "model": None, "score": None} for each in responses]
    return ComparisonRowView(
        index=row.index,
        prompt=row.prompt,
        responses=responses,
        votes=told,
    )
