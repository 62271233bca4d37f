"""Uploaded files of every accepted kind to canonical Parquet. Torch-free.

Everything is streamed: memory depends on the longest accepted row, not on the file, but for eight bytes a row
that tell repetitions and, where ids were uploaded, eight more.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from mpo.dataset_blocks import GROUP_BYTES, GROUP_ROWS, SCHEMAS, Block, blocks_of
from mpo.dataset_containers import Progress, Unreadable, Upload, is_gzip, open_upload
from mpo.dataset_csv import rows_of_csv
from mpo.dataset_ids import Ids
from mpo.dataset_json_array import rows_of_array
from mpo.dataset_lines import blocks_of_lines
from mpo.dataset_parquet import blocks_of_parquet, bounded_memory
from mpo.dataset_report import DatasetReport, ReportBuilder
from mpo.dataset_rows import DatasetKind
from mpo.errors import BadRow, InvalidDataset
from mpo.records import parquet_writer

STOP_AFTER_BAD_ROWS = 10_000
"""Beyond this (and beyond what the dataset allows) no further row is looked at."""
MAX_PACKED_PARQUET_BYTES = 2**33
"""Parquet within gzip is unpacked to the disk, as it is read from its end."""


def validate_file(
    source: Path,
    target: Path,
    *,
    media_type: str | None = None,
    max_bad_rows: int = 0,
    on_progress: Progress = lambda read, size: None,
    kind: DatasetKind = "preference",
) -> DatasetReport:
    """Writes the canonical rows of an uploaded file to `target` and reports on them.

    Accepted are JSON Lines, a JSON array of rows, CSV and Parquet, each also gzip. The bytes decide which
    it is, whatever media_type says. A row's id is the uploaded one, else its number from 0, refused rows
    counted. Raises InvalidDataset, with the report as the fact `report`, where more than max_bad_rows rows
    are bad or none is good, or where the file cannot be read to its end.
    """
    builder, size = ReportBuilder(kind, "jsonl"), source.stat().st_size
    try:
        with source.open("rb") as file:
            packed = ".gz" if is_gzip(file) else ""
            builder.format = f"jsonl{packed}"
            upload = open_upload(file, size, on_progress)
            builder.format = f"{upload.container}{packed}"
            # Before the writer, whose first allocation would reserve memory beyond the bound.
            bound = bounded_memory() if upload.container == "parquet" else _lean_memory()
            with bound, parquet_writer(target, SCHEMAS[kind], "lz4") as writer:
                blocks = _blocks(upload, source, target.parent, builder, on_progress)
                _write(_accepted(blocks, builder, max_bad_rows), writer, builder)
        _judge(builder, max_bad_rows)
    except Unreadable as error:
        target.unlink(missing_ok=True)
        raise _cut_short(builder, error) from None
    except InvalidDataset:
        target.unlink()
        raise
    return builder.report()


@contextmanager
def _lean_memory() -> Iterator[None]:
    """Arrow's own allocator keeps more of what is given back than the system's, and saves no time."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _blocks(
    upload: Upload, source: Path, scratch: Path, builder: ReportBuilder, on_progress: Progress
) -> Iterator[Block]:
    kind, size = builder.kind, source.stat().st_size
    if upload.container == "jsonl":
        yield from blocks_of_lines(upload.chunks, size, kind)
    elif upload.container == "json":
        yield from blocks_of(rows_of_array(upload.chunks, kind), kind)
    elif upload.container == "csv":
        yield from blocks_of(rows_of_csv(upload.chunks, kind), kind)
    elif not builder.format.endswith(".gz"):
        yield from blocks_of_parquet(source, size, kind, on_progress)
    else:
        with tempfile.TemporaryFile(dir=scratch) as unpacked:
            _unpack(upload, unpacked)
            yield from blocks_of_parquet(unpacked, size, kind, on_progress)


def _cut_short(builder: ReportBuilder, error: Unreadable) -> InvalidDataset:
    builder.complete = False
    if error.line is None:
        return _invalid(error.message, builder)
    builder.refuse(BadRow(error.message, line=error.line, column=error.column))
    return _invalid(f"{_place(builder, error.line, error.column).capitalize()}: {error.message}", builder)


def _unpack(upload: Upload, target: IO[bytes]) -> None:
    for chunk in upload.chunks:
        target.write(chunk)
        if target.tell() > MAX_PACKED_PARQUET_BYTES:
            raise Unreadable(
                f"The Parquet file in the gzip file has more than {MAX_PACKED_PARQUET_BYTES} bytes."
            )
    target.seek(0)


def _accepted(blocks: Iterator[Block], builder: ReportBuilder, max_bad_rows: int) -> Iterator[Block]:
    """The blocks, numbered and without refused rows, up to the row that is one too many."""
    ids, allowed = Ids(), max(max_bad_rows, STOP_AFTER_BAD_ROWS)
    for block in blocks:
        numbered = ids.number(block)
        excess = builder.bad_rows + len(numbered.bad) - allowed
        if excess > 0:
            last = numbered.bad[-excess][0]
            numbered.bad = numbered.bad[: len(numbered.bad) - excess + 1]
            numbered = numbered.keep(numbered.offsets < last)
            builder.complete = False
        for _, error in numbered.bad:
            builder.refuse(error)
        yield numbered
        if excess > 0:
            return


def _write(blocks: Iterator[Block], writer: pq.ParquetWriter, builder: ReportBuilder) -> None:
    """Counts blocks and writes them, as few row groups: the footer is in memory to the end."""
    waiting, rows, size = list[pa.Table](), 0, 0
    for block in blocks:
        if block.table.num_rows:
            builder.accept(block)
            waiting.append(block.table)
            rows, size = rows + block.table.num_rows, size + block.table.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            writer.write_table(pa.concat_tables(waiting))
            waiting, rows, size = [], 0, 0
    if waiting:
        writer.write_table(pa.concat_tables(waiting))


def _judge(builder: ReportBuilder, max_bad_rows: int) -> None:
    if builder.bad_rows > max_bad_rows:
        first = builder.first_bad
        where = _place(builder, first.line, first.column)
        counted = f"{builder.bad_rows}{'' if builder.complete else ' or more'}"
        raise _invalid(
            f"{counted} bad row(s), {max_bad_rows} allowed. The first, {where}: {first.message}", builder
        )
    if builder.rows == 0:
        raise _invalid("The file holds no row that can be used.", builder)


def _place(builder: ReportBuilder, line: int, column: int | None) -> str:
    unit = "row" if builder.format.startswith("parquet") else "line"
    return f"{unit} {line}" + (f", column {column}" if column is not None else "")


def _invalid(detail: str, builder: ReportBuilder) -> InvalidDataset:
    return InvalidDataset(detail, report=builder.report())
