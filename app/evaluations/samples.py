"""Pages of an evaluation's samples, from the file that its run has left."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import IO

from app.evaluations.schemas import EvaluationSample
from app.pagination import Page, PageQuery, page_of
from core.errors import Unprocessable


def samples_page(file: IO[bytes], query: PageQuery) -> Page[EvaluationSample]:
    """The samples after `query.after`, an index, in the prompts' order or in reverse."""
    after = None if query.after is None else _index(query.after)
    rows = [EvaluationSample.model_validate_json(line) for line in _lines(file, query, after)]
    return page_of(rows, query.limit, lambda row: str(row.index), lambda row: row)


def _lines(file: IO[bytes], query: PageQuery, after: int | None) -> Iterator[bytes]:
    """One line more than the page has, where there are so many."""
    most = query.limit + 1
    if query.descending:
        return iter(reversed(deque(islice(file, after), maxlen=most)))
    start = 0 if after is None else after + 1
    return islice(file, start, start + most)


def _index(after: str) -> int:
    if after.isascii() and after.isdecimal() and len(after) < 10:
        return int(after)
    raise Unprocessable("should be the index of a sample", loc=("query", "after"))
