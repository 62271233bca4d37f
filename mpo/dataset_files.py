"""Uploaded files: JSON Lines, plain or gzip, to canonical Parquet. Torch-free.

Everything is streamed: memory depends on the longest accepted line, not on the file.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mpo.dataset_report import CONTENT_COLUMNS, DatasetReport, ReportBuilder
from mpo.dataset_rows import CanonicalRow, DatasetKind, canonical_row
from mpo.errors import BadRow, InvalidDataset
from mpo.records import PAIR_SCHEMA, PROMPT_SCHEMA, TEXT_SCHEMA, dump_content, parquet_writer

CHUNK_BYTES = 2**20
MAX_LINE_BYTES = 2**24
MAX_UNPACKED_BYTES = 2**37
"""A gzip file that unpacks to more than this is not read to its end."""
STOP_AFTER_BAD_ROWS = 10_000
"""Beyond this (and beyond what the dataset allows) no further row is looked at."""
GROUP_ROWS, GROUP_BYTES = 8192, 2**23
"""A row group is written when it holds this many rows or bytes of uploaded lines."""

GZIP_MAGIC, BOM, PARQUET_MAGIC = b"\x1f\x8b", b"\xef\xbb\xbf", b"PAR1"
SCHEMAS = {"preference": PAIR_SCHEMA, "prompts": PROMPT_SCHEMA, "text": TEXT_SCHEMA}

Progress = Callable[[int, int], None]
"""Called with the bytes of the file that have been read, and the file's size."""


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

    The bytes decide over media_type, which may be wrong. A row's id is the uploaded one, else its number from
    0, refused rows counted. Raises InvalidDataset, with the report as the fact `report`, where more than
    max_bad_rows rows are bad or none is good, or where the file is not JSON Lines, plain or gzip.
    """
    with source.open("rb") as file:
        magic = file.read(len(PARQUET_MAGIC))
        file.seek(0)
        is_gzip = magic.startswith(GZIP_MAGIC)
        builder = ReportBuilder(kind, "jsonl.gz" if is_gzip else "jsonl")
        if magic == PARQUET_MAGIC:
            raise _invalid("This is a Parquet file; accepted is JSON Lines, plain or gzip.", builder)
        chunks = _chunks(file, source.stat().st_size, builder, on_progress)
        try:
            with parquet_writer(target, SCHEMAS[kind]) as writer:
                _convert(_lines(chunks), _Group(builder, writer), max_bad_rows)
            _judge(builder, max_bad_rows)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            target.unlink()
            builder.complete = False
            what = "is cut off: its end is missing" if isinstance(error, EOFError) else "is damaged"
            raise _invalid(f"The gzip file {what}.", builder) from error
        except InvalidDataset:
            target.unlink()
            raise
    return builder.report()


def _judge(builder: ReportBuilder, max_bad_rows: int) -> None:
    if builder.bad_rows > max_bad_rows:
        first = builder.report().bad[0]
        where = f"line {first.line}" + (f", column {first.column}" if first.column is not None else "")
        counted = f"{builder.bad_rows}{'' if builder.complete else ' or more'}"
        raise _invalid(
            f"{counted} bad row(s), {max_bad_rows} allowed. The first, {where}: {first.message}", builder
        )
    if builder.rows == 0:
        raise _invalid("The file holds no row that can be used.", builder)


def _invalid(detail: str, builder: ReportBuilder) -> InvalidDataset:
    return InvalidDataset(detail, report=builder.report())


def _chunks(file: BinaryIO, size: int, builder: ReportBuilder, on_progress: Progress) -> Iterator[bytes]:
    """The file's bytes, unpacked, without a byte order mark."""
    unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if builder.format == "jsonl.gz" else file
    chunk, total = unpacked.read(CHUNK_BYTES).removeprefix(BOM), 0
    while chunk:
        yield chunk
        total += len(chunk)
        if total > MAX_UNPACKED_BYTES:
            builder.complete = False
            raise _invalid(f"The file unpacks to more than {MAX_UNPACKED_BYTES} bytes.", builder)
        on_progress(file.tell(), size)
        chunk = unpacked.read(CHUNK_BYTES)


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank, with their numbers from 1; None for one above `MAX_LINE_BYTES`."""
    number, rest, too_long = 0, b"", False
    for chunk in chunks:
        if not rest and chunk.isspace():
            number += chunk.count(b"\n")
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            if too_long or len(line) > MAX_LINE_BYTES:
                yield number, None
                too_long = False
            elif line and not line.isspace():
                yield number, line
        if len(rest) > MAX_LINE_BYTES:
            # What follows of this line is not kept.
            too_long, rest = True, b""
    if too_long:
        yield number + 1, None
    elif rest.strip():
        yield number + 1, rest


def _convert(lines: Iterator[tuple[int, bytes | None]], group: "_Group", max_bad_rows: int) -> None:
    ids, builder = _Ids(), group.builder
    for row, (line, raw) in enumerate(lines):
        try:
            if raw is None:
                raise BadRow(f"The line is longer than {MAX_LINE_BYTES} bytes.", line=line)
            canonical = canonical_row(parse_line(raw, line), builder.kind, line)
            group.add(canonical, ids.take(canonical.id, row, line), len(raw))
        except BadRow as error:
            builder.refuse(error)
            if builder.bad_rows > max(max_bad_rows, STOP_AFTER_BAD_ROWS):
                builder.complete = False
                break
    group.write()


class _Constant(ValueError):
    """NaN or an infinity, which Python would read and JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _Constant(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_line(raw: bytes, line: int) -> dict[str, object]:
    """The JSON object of a line; raises BadRow."""
    try:
        text = raw.decode()
        value = _DECODER.decode(text)
        # Only an escape can spell a NUL or half of a surrogate pair: elsewhere JSON and UTF-8 refuse them.
        if "\\u" in text:
            _refuse_unstorable(value, line)
    except UnicodeDecodeError as error:
        raise BadRow("The line is not UTF-8.", line=line, column=error.start + 1) from None
    except json.JSONDecodeError as error:
        raise BadRow(f"The line is not JSON: {error.msg}.", line=line, column=error.colno) from None
    except _Constant as error:
        raise BadRow(f"The line is not JSON: it holds {error}.", line=line) from None
    except ValueError:
        raise BadRow("The line holds a number of too many digits.", line=line) from None
    except RecursionError:
        raise BadRow("The line is nested too deep.", line=line) from None
    if not isinstance(value, dict):
        raise BadRow("A row must be a JSON object, one a line.", line=line)
    return value


def _refuse_unstorable(value: object, line: int) -> None:
    for text in _strings(value):
        if "\0" in text:
            raise BadRow("A string holds a NUL character (U+0000).", line=line)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow("A string holds half of a surrogate pair.", line=line) from None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in value:
            yield from _strings(element)
    elif isinstance(value, dict):
        yield from _strings([*value.keys(), *value.values()])


class _Ids:
    """Which ids are taken: uploaded ones, and the row numbers of rows that brought none."""

    def __init__(self) -> None:
        self._uploaded: set[str] = set()
        self._numbered = bytearray()

    def take(self, uploaded: str | None, row: int, line: int) -> str:
        """The row's id; raises BadRow where another row has it."""
        self._numbered.extend(bytes(row + 1 - len(self._numbered)))
        id_ = str(row) if uploaded is None else uploaded
        if id_ in self._uploaded or (uploaded is not None and self._is_number_of_a_row(id_)):
            raise BadRow('The column "id" repeats that of an earlier row.', line=line)
        if uploaded is None:
            self._numbered[row] = True
        else:
            self._uploaded.add(id_)
        return id_

    def _is_number_of_a_row(self, id_: str) -> bool:
        number = int(id_) if id_.isascii() and id_.isdecimal() and len(id_) < 16 else -1
        return 0 <= number < len(self._numbered) and str(number) == id_ and bool(self._numbered[number])


@dataclass
class _Group:
    """The row group that is being filled."""

    builder: ReportBuilder
    writer: pq.ParquetWriter
    rows: list[CanonicalRow] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, row: CanonicalRow, id_: str, line_bytes: int) -> None:
        """Takes a row; writes the group once it is full."""
        self.rows.append(row)
        self.ids.append(id_)
        self.bytes += line_bytes
        if len(self.rows) >= GROUP_ROWS or self.bytes >= GROUP_BYTES:
            self.write()

    def write(self) -> None:
        """Writes what there is and starts anew."""
        if not self.rows:
            return
        names = CONTENT_COLUMNS[self.builder.kind]
        contents = [[dump_content(row.contents[n]) for row in self.rows] for n in range(len(names))]
        columns: dict[str, list[object]] = {
            "id": [*self.ids],
            "form": ["text" if isinstance(row.contents[0], str) else "messages" for row in self.rows],
            **{name: [*column] for name, column in zip(names, contents, strict=True)},
            **{n: [getattr(r, n) for r in self.rows] for n in ("annotator", "margin", "weight", "source")},
        }
        schema = SCHEMAS[self.builder.kind]
        arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self.builder.accept(self.rows, contents)
        self.rows, self.ids, self.bytes = [], [], 0
