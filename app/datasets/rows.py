"""Pages of a dataset's canonical rows. Imports pyarrow only when asked: the server starts without it."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.datasets.schemas import DatasetRow, PreferenceRow, PromptRow, TextRow
from app.pagination import Page, PageQuery
from core.errors import Unprocessable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

STEP = 10
MAX_PAGE_BYTES = 16 << 20


class UnknownRow(Unprocessable):
    """`after` should be the id of a row of this dataset."""

    code = "unknown_row"


def rows_page(path: Path, kind: str, query: PageQuery) -> Page[DatasetRow]:
    """The rows after `query.after` in the file's order, or in reverse; fewer where rows are huge."""
    from mpo.records import count_rows, read_rows

    total, step = count_rows(path), -1 if query.descending else 1
    start = (total - 1 if query.descending else 0) if query.after is None else _position(path, query) + step
    wanted = range(start, -1 if query.descending else total, step)[: query.limit]
    rows: list[DatasetRow] = []
    size = 0
    for at in range(0, len(wanted), STEP):
        table = read_rows(path, wanted[at : at + STEP])
        rows += _rows_of(table, kind)
        size += table.nbytes
        if size > MAX_PAGE_BYTES:
            break
    last = start + step * len(rows)
    return Page(
        data=rows,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
        has_more=0 <= last < total,
    )


def shared_prompts(path: Path, other: Path) -> int:
    """Distinct prompts that two files have in common, compared as they are written."""
    import numpy as np

    return len(np.intersect1d(_prompts(path), _prompts(other), assume_unique=True))


def _prompts(path: Path) -> "np.ndarray":
    """The hashes of a file's prompts, each once: eight bytes a row."""
    import numpy as np

    from mpo.dataset_blocks import hashes
    from mpo.records import stream_batches

    batches = (batch[0].to_pylist() for batch in stream_batches(path, ["prompt"]))
    found = [np.zeros(0, np.uint64), *(hashes(prompts, len(prompts)) for prompts in batches)]
    return np.unique(np.concatenate(found))


def _position(path: Path, query: PageQuery) -> int:
    """The row that `after` names: most ids are its number, else the id column is searched."""
    from pyarrow import compute

    from mpo.records import count_rows, read_rows, stream_batches

    after, start = query.after or "", 0
    if after.isascii() and after.isdecimal() and int(after) < count_rows(path):
        row = int(after)
        if read_rows(path, [row]).column("id")[0].as_py() == after:
            return row
    for batch in stream_batches(path, ["id"]):
        index = int(compute.index(batch.column(0), after).as_py())
        if index >= 0:
            return start + index
        start += batch.num_rows
    raise UnknownRow(loc=("query", "after"))


def _rows_of(table: "pa.Table", kind: str) -> list[DatasetRow]:
    from mpo.records import load_content, pairs_of

    if kind == "preference":
        return [PreferenceRow.model_validate(pair) for pair in pairs_of(table)]
    rows = table.to_pylist()
    if kind == "text":
        return [TextRow(id=row["id"], text=row["text"]) for row in rows]
    return [
        PromptRow.model_validate({"id": row["id"], "prompt": load_content(row["prompt"], row["form"])})
        for row in rows
    ]
