"""What people say of a comparison's rows, and the preferences that it comes to."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.comparisons.rows import row_views, sides_of
from app.comparisons.schemas import ComparisonRowView, VoteBody
from app.ownership import find_owned
from core.database import Transaction
from core.errors import Conflict, NotFound, Unprocessable
from core.tables import Comparison, ComparisonRow, Vote


class NothingPreferred(Conflict):
    """No vote on this comparison prefers one of two responses."""

    code = "nothing_preferred"


def vote(tx: Transaction, owner: str, comparison_id: str, body: VoteBody) -> ComparisonRowView:
    """Keep a vote, in place of the annotator's earlier one on this row. Raises NotFound, Unprocessable."""
    comparison = find_owned(tx.session, Comparison, owner, comparison_id)
    if len(comparison.models) != 2 or comparison.request["sampling"]["n"] != 1:
        raise Unprocessable("People vote on comparisons of two models with one response each")
    row = tx.session.get(ComparisonRow, (comparison_id, body.row))
    if row is None:
        raise NotFound(f"This comparison has no row {body.row} by now")
    values = {"comparison_id": comparison_id, "row": body.row, "annotator": body.annotator}
    statement = upsert(Vote).values(**values, preferred=body.preferred)
    tx.session.execute(
        statement.on_conflict_do_update(
            index_elements=list(values), set_={"preferred": statement.excluded.preferred}
        )
    )
    # Whoever waits for a change of the comparison is told.
    tx.session.execute(
        update(Comparison).where(Comparison.id == comparison_id).values(row_count=Comparison.row_count)
    )
    return row_views(tx.session, comparison, [row])[0]


def voted_pairs(session: Session, owner: str, comparison_id: str) -> tuple[Comparison, bytes]:
    """The comparison, and its votes as JSON Lines of preferences. Raises NotFound, NothingPreferred.

    A vote for one side is a pair, with its annotator; ties and rows where both are bad prefer nothing. Equal
    responses make no pair.
    """
    comparison = find_owned(session, Comparison, owner, comparison_id)
    statement = (
        select(Vote, ComparisonRow)
        .join(
            ComparisonRow,
            (ComparisonRow.comparison_id == Vote.comparison_id) & (ComparisonRow.index == Vote.row),
        )
        .where(Vote.comparison_id == comparison_id, Vote.preferred.in_(("A", "B")))
        .order_by(Vote.row, Vote.annotator)
    )
    pairs = [_pair(comparison, vote, row) for vote, row in session.execute(statement)]
    rows = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    if not rows:
        raise NothingPreferred(f"No vote on {comparison_id} prefers one of two different responses")
    return comparison, _json_lines(rows)


def _pair(comparison: Comparison, vote: Vote, row: ComparisonRow) -> dict[str, Any]:
    texts = {response["model"]: response["text"] for response in row.responses}
    first, second = (texts[model] for model in sides_of(comparison, row.index))
    chosen, rejected = (first, second) if vote.preferred == "A" else (second, first)
    if not isinstance(row.prompt, str):
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {
        "id": f"{row.index}:{vote.annotator}",
        "prompt": row.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "annotator": vote.annotator,
    }


def _json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
