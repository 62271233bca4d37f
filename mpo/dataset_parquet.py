"""Parquet files of strangers to blocks of rows, a small batch in memory at a time. Torch-free."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpo.dataset_blocks import CONTENT_COLUMNS, Block, Item, block_of
from mpo.dataset_columns import OPTIONAL_NUMBERS, OPTIONAL_STRINGS, OTHER_CONTENTS, text_block
from mpo.dataset_containers import Progress, Unreadable
from mpo.dataset_lines import MAX_LINE_BYTES, refuse_unstorable
from mpo.dataset_rows import DatasetKind, canonical_row
from mpo.errors import BadRow

BATCH_ROWS = 2048
MAX_BATCH_BYTES = 2**23
"""A batch of dictionaries is cut until its texts, written out, have no more than this or it is one row."""
MEMORY_BYTES = 3 * 2**26
"""What decoding may take: a page claims its unpacked size itself, up to 2 GiB."""
READ = frozenset(
    (*CONTENT_COLUMNS["preference"], *OPTIONAL_STRINGS, *OPTIONAL_NUMBERS, *OTHER_CONTENTS, "input")
)


def blocks_of_parquet(
    source: Path | IO[bytes], size: int, kind: DatasetKind, on_progress: Progress
) -> Iterator[Block]:
    """The rows of a Parquet file; lines are its rows, from 1. Raises Unreadable."""
    with _translated(), _opened(source, kind) as file:
        names = [name for name in file.schema_arrow.names if name in READ | set(CONTENT_COLUMNS[kind])]
        total, row = max(file.metadata.num_rows, 1), 1
        for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            for part in _pieces(pa.Table.from_batches([batch])):
                yield _block(part, row, kind)
                row += part.num_rows
            on_progress(min(size, size * (row - 1) // total), size)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Lets the process allocate `MEMORY_BYTES` more than it has, so that Arrow gives up on a hostile file
    instead of the machine on us; raises Unreadable where that is too little.

    Holds in a process in which Arrow has allocated nothing yet, as in a worker's child; else what its
    allocator has reserved before, a gibibyte, comes on top.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    if status.exists():
        held = next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmData" in line)
        bound = held * 1024 + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (bound if soft < 0 else min(soft, bound), hard))
    try:
        yield
    except MemoryError:
        raise Unreadable(
            f"The Parquet file needs more than {MEMORY_BYTES} bytes of memory: write smaller row groups."
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk or the pipe, not the file's content
        said = str(error).strip().splitlines()
        raise Unreadable(
            f"The Parquet file cannot be read: {said[0][:200] if said else 'damaged'}."
        ) from None


@contextmanager
def _opened(source: Path | IO[bytes], kind: DatasetKind) -> Iterator[pq.ParquetFile]:
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        _check_columns(schema, kind)
        texts = [f.name for f in schema if f.name in READ | {"text"} and _is_text(_value_type(f.type))]
    # Texts stay dictionaries until a piece is cut: a long text that a million rows share is one text.
    with pq.ParquetFile(source, read_dictionary=texts, buffer_size=2**20, pre_buffer=False) as file:
        yield file


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _check_columns(schema: pa.Schema, kind: DatasetKind) -> None:
    needed = CONTENT_COLUMNS[kind]
    if kind == "preference":
        needed = OTHER_CONTENTS if any(name in schema.names for name in OTHER_CONTENTS) else needed[1:]
    for name in needed:
        if name not in schema.names:
            raise Unreadable(f'The Parquet file lacks the column "{name}".')
    if len(set(schema.names)) < len(schema.names):
        raise Unreadable("The Parquet file names a column twice.")


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """The table in parts whose texts are few enough to be written out."""
    if table.num_rows > 1 and _text_bytes(table) > MAX_BATCH_BYTES:
        middle = table.num_rows // 2
        yield from _pieces(table.slice(0, middle))
        yield from _pieces(table.slice(middle))
    elif table.num_rows:
        yield table


def _text_bytes(table: pa.Table) -> int:
    total = 0
    for column in table.columns:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
                total += pc.sum(lengths).as_py() or 0
    return total


def _block(table: pa.Table, row: int, kind: DatasetKind) -> Block:
    table = pa.table({name: _plain(name, table.column(name)) for name in table.schema.names})
    block = text_block(table, np.arange(row, row + table.num_rows), kind)
    if block is None:
        block = block_of([_item(table.slice(n, 1), row + n, kind) for n in range(table.num_rows)], kind)
    return block


def _plain(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in the type that JSON would give it, where it has one."""
    type_ = _value_type(column.type)
    if _is_text(type_):
        return column.cast(pa.string())
    if pa.types.is_null(type_):
        return column.cast(pa.string())
    if pa.types.is_integer(type_) and name in OPTIONAL_STRINGS and not pa.types.is_uint64(type_):
        return column.cast(pa.int64())
    if pa.types.is_floating(type_) and not pa.types.is_float16(type_):
        return column.cast(pa.float64())
    return column


def _item(table: pa.Table, row: int, kind: DatasetKind) -> Item:
    try:
        values = {name: value for name, value in table.to_pylist()[0].items() if value is not None}
        if table.nbytes > MAX_LINE_BYTES:
            raise BadRow(f"The row is longer than {MAX_LINE_BYTES} bytes.", line=row)
        refuse_unstorable(values, row)
        return canonical_row(values, kind, row), row, table.nbytes
    except UnicodeDecodeError:
        return BadRow("A string is not UTF-8.", line=row), row, 0
    except (OverflowError, ValueError):
        return BadRow("A value is out of range: of a time, a date or a duration.", line=row), row, 0
    except BadRow as error:
        return error, row, 0
