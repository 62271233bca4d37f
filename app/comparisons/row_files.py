"""A comparison's rows as files: CSV, a line a response; JSON Lines, a line a row; HTML, a page to read."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment

from app.comparisons.rows import row_views
from app.comparisons.schemas import ComparisonRowView, ComparisonView
from app.comparisons.service import rows_after
from core.database import open_session
from core.tables import Comparison

COLUMNS = ("index", "prompt", "model", "sample", "text", "finish_reason", "tokens", "score")
ROWS_AT_ONCE = 200
HTML_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
}
"""A page of its own style, without scripts."""

_PAGE = Path(__file__).with_name("page.html.jinja")
_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE.read_text())


def stream_csv(comparison_id: str) -> Iterator[str]:
    """All rows there are."""
    yield _lines([COLUMNS])
    for rows in _parts(comparison_id):
        yield _lines(
            [
                (row.index, _cell(row.prompt), *(response[name] for name in COLUMNS[2:]))
                for row in rows
                for response in [each.model_dump() for each in row.responses]
            ]
        )


def stream_json_lines(comparison_id: str) -> Iterator[str]:
    """All rows there are, as /rows shows them."""
    for rows in _parts(comparison_id):
        yield "".join(row.model_dump_json() + "\n" for row in rows)


def stream_html(comparison: ComparisonView) -> Iterator[str]:
    """A page that needs nothing else: win rates first, then what each model answered."""
    rates = {(rate.model_a, rate.model_b): rate for rate in comparison.win_rates}
    rows = (row for part in _parts(comparison.id) for row in part)
    return iter(_TEMPLATE.generate(comparison=comparison, rates=rates, rows=rows, shown=_shown, best=_best))


def _parts(comparison_id: str) -> Iterator[list[ComparisonRowView]]:
    """Some rows at a time, each in a session of its own: a slow reader holds none."""
    after = -1
    while True:
        with open_session() as session:
            comparison = session.get_one(Comparison, comparison_id)
            found = rows_after(session, comparison_id, after, ROWS_AT_ONCE)
            rows = row_views(session, comparison, found)
        if not rows:
            return
        after = rows[-1].index
        yield rows


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{t['role']}: {t['content']}" for t in prompt)


def _best(row: ComparisonRowView) -> float | None:
    return max((r.score for r in row.responses if r.score is not None), default=None)


def _cell(prompt: object) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _lines(rows: list[tuple[object, ...]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()
