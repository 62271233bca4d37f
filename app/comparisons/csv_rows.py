"""A comparison's rows as CSV: a line a response."""

import csv
import io
import json
from collections.abc import Iterator

from app.comparisons.service import rows_after
from core.database import open_session

COLUMNS = ("index", "prompt", "model", "sample", "text", "finish_reason", "tokens", "score")
ROWS_AT_ONCE = 200


def stream_csv(comparison_id: str) -> Iterator[str]:
    """All rows there are, some at a time, each in a session of its own: a slow reader holds none."""
    yield _lines([COLUMNS])
    after = -1
    while True:
        with open_session() as session:
            rows = rows_after(session, comparison_id, after, ROWS_AT_ONCE)
        if not rows:
            return
        after = rows[-1].index
        yield _lines(
            [
                (row.index, _cell(row.prompt), *(response.get(name) for name in COLUMNS[2:]))
                for row in rows
                for response in row.responses
            ]
        )


def _cell(prompt: object) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _lines(rows: list[tuple[object, ...]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()
