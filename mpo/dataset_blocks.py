"""Blocks: consecutive rows of an upload, read and checked, not yet numbered. Torch-free.

Every container becomes blocks, so that report and canonical file come about one way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from mpo.dataset_rows import CanonicalRow, DatasetKind
from mpo.errors import BadRow
from mpo.records import PAIR_SCHEMA, PROMPT_SCHEMA, TEXT_SCHEMA, Content, dump_content

GROUP_ROWS, GROUP_BYTES = 2**15, 2**22
"""A block that is put together row by row, and a row group, is closed when it holds so many rows or bytes."""

SCHEMAS: Mapping[DatasetKind, pa.Schema] = {
    "preference": PAIR_SCHEMA,
    "prompts": PROMPT_SCHEMA,
    "text": TEXT_SCHEMA,
}
CONTENT_COLUMNS: Mapping[DatasetKind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
    "text": ("text",),
}
"""The columns of `CanonicalRow.contents`."""

# Arrow imports pandas, where there is one, at its first array: once before forks, not again in every child.
pa.array([])

_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT, _ONE = np.uint64(32), np.uint64(1)


@dataclass(slots=True)
class Block:
    """Rows in the file's order. rows: all of them, refused ones counted.

    table: the accepted rows in the schema of the kind, id null where none was uploaded. offsets, lines: place
    in the block, and line in the file, of each accepted row. lengths: characters, an array a content column.
    keys: `content_keys` of the accepted rows. bad: the refused rows with their places in the block.
    """

    rows: int
    table: pa.Table
    offsets: np.ndarray
    lines: np.ndarray
    lengths: tuple[np.ndarray, ...]
    keys: np.ndarray
    bad: list[tuple[int, BadRow]] = field(default_factory=list)

    def keep(self, mask: np.ndarray) -> "Block":
        """The block with these accepted rows alone; `bad` is the caller's to extend."""
        return replace(
            self,
            table=self.table.filter(pa.array(mask)),
            offsets=self.offsets[mask],
            lines=self.lines[mask],
            lengths=tuple(column[mask] for column in self.lengths),
            keys=self.keys[mask],
        )


def content_keys(kind: DatasetKind, table: pa.Table) -> np.ndarray:
    """64 bits a row that tell contents apart; of pairs all but the lowest are equal where only the sides are
    exchanged, and the lowest tells which way round they are.

    From Python's hash of bytes, which an uploader cannot aim at: its key is the process's own.
    """
    columns = (table.column(name).cast(pa.binary()) for name in CONTENT_COLUMNS[kind])
    first, *sides = (hashes(column.to_numpy(), table.num_rows) for column in columns)
    mixed = _mix(first, _ODD[0])
    if not sides:
        return mixed
    chosen, rejected = sides
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    both = _mix(mixed ^ _mix(low, _ODD[1]) + _mix(high, _ODD[2]), _ODD[0])
    return (both & ~_ONE) | (chosen > rejected).astype(np.uint64)


def hashes(texts: Iterable[object], count: int) -> np.ndarray:
    """Python's hash of each text, as unsigned numbers."""
    return np.fromiter(map(hash, texts), dtype=np.int64, count=count).view(np.uint64)


def _mix(values: np.ndarray, odd: np.uint64) -> np.ndarray:
    values = (values ^ (values >> _SHIFT)) * odd
    mixed: np.ndarray = values ^ (values >> _SHIFT)
    return mixed


Item = tuple[CanonicalRow | BadRow, int, int]
"""A row or why it is refused, its line, and its size in bytes."""


def blocks_of(items: Iterable[Item], kind: DatasetKind) -> Iterator[Block]:
    """The blocks of rows that come one by one."""
    rows: list[Item] = []
    size = 0
    for item in items:
        rows.append(item)
        size += item[2]
        if len(rows) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield block_of(rows, kind)
            rows, size = [], 0
    if rows:
        yield block_of(rows, kind)


def block_of(items: Sequence[Item], kind: DatasetKind) -> Block:
    """One block of these rows."""
    good = [(row, line, at) for at, (row, line, _) in enumerate(items) if isinstance(row, CanonicalRow)]
    rows = [row for row, _, _ in good]
    table = _table(rows, kind)
    return Block(
        rows=len(items),
        table=table,
        offsets=np.array([at for _, _, at in good], np.int64),
        lines=np.array([line for _, line, _ in good], np.int64),
        lengths=tuple(
            np.array([_length(row.contents[column]) for row in rows], np.int64)
            for column in range(len(CONTENT_COLUMNS[kind]))
        ),
        keys=content_keys(kind, table),
        bad=[(at, _forgetting(row)) for at, (row, _, _) in enumerate(items) if isinstance(row, BadRow)],
    )


def _forgetting(error: BadRow) -> BadRow:
    """The error without the frames that it was raised through: they hold the row's texts."""
    error.__context__ = None
    return error.with_traceback(None)


def _table(rows: Sequence[CanonicalRow], kind: DatasetKind) -> pa.Table:
    schema, names = SCHEMAS[kind], CONTENT_COLUMNS[kind]
    columns: dict[str, list[object]] = {
        "form": ["text" if isinstance(row.contents[0], str) else "messages" for row in rows],
        **{name: [dump_content(row.contents[n]) for row in rows] for n, name in enumerate(names)},
        **{n: [getattr(r, n) for r in rows] for n in ("id", "annotator", "margin", "weight", "source")},
    }
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def _length(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(message["content"]) for message in content)
