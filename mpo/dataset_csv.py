"""CSV to rows: cells as RFC 4180 quotes them, a header, UTF-8. Torch-free.

A cell is text, verbatim, and an empty one is no value. Only where every content cell of a row is the JSON
text of a list of messages are they message lists: a text that merely looks so stays a text.
"""

import csv
import json
from collections.abc import Iterator, Sequence

from mpo.dataset_blocks import CONTENT_COLUMNS, Item
from mpo.dataset_columns import OPTIONAL_NUMBERS, OTHER_CONTENTS
from mpo.dataset_containers import Unreadable
from mpo.dataset_lines import MAX_LINE_BYTES, refuse_unstorable, whole_lines
from mpo.dataset_rows import DatasetKind, canonical_row
from mpo.errors import BadRow

CONTENT_CELLS = (*CONTENT_COLUMNS["preference"], *OTHER_CONTENTS)


def rows_of_csv(chunks: Iterator[bytes], kind: DatasetKind) -> Iterator[Item]:
    """The rows below a header. Raises Unreadable where the header lacks a column or a quotation mark is never
    closed."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES + 1))
    feed = _Feed(chunks)
    reader = csv.reader(feed, strict=True)
    header = _header(reader, kind)
    while True:
        line = feed.next_record()
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            row = _row(cells, header, feed)
            yield canonical_row(row, kind, line), line, feed.size
        except csv.Error as error:
            yield BadRow(f"The row is not CSV: {error}.", line=line), line, feed.size
        except BadRow as error:
            yield error, line, feed.size


def _header(reader: Iterator[list[str]], kind: DatasetKind) -> list[str]:
    try:
        header = next(reader)
    except csv.Error as error:
        raise Unreadable(f"The header is not CSV: {error}.", 1, 1) from None
    names = [name for name in header if name]
    if len(set(names)) < len(names):
        raise Unreadable("The header names a column twice.", 1, 1)
    needed = CONTENT_COLUMNS[kind]
    if kind == "preference":
        needed = OTHER_CONTENTS if any(name in names for name in OTHER_CONTENTS) else ("chosen", "rejected")
    for name in needed:
        if name not in names:
            raise Unreadable(
                f'The header lacks the column "{name}"; commas part cells, names are as in JSON Lines.',
                1,
                1,
            )
    return header


class _Feed:
    """The lines that the reader asks for, and where the record began that they belong to."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._lines = self._decoded(chunks)
        self._read = 0
        self.line, self.size = 1, 0
        self.undecoded: tuple[int, int] | None = None

    def next_record(self) -> int:
        """Begins a record; its first line's number."""
        self.line, self.size, self.undecoded = self._read + 1, 0, None
        return self.line

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._read += 1
        self.size += len(line)
        if self.size > MAX_LINE_BYTES:
            raise Unreadable(
                f"The row is longer than {MAX_LINE_BYTES} characters: is a quotation mark not closed?",
                self.line,
            )
        if self.undecoded is None and not line.isascii():
            self._find_other_bytes(line)
        return line

    def _find_other_bytes(self, line: str) -> None:
        try:
            line.encode()
        except UnicodeEncodeError as error:
            self.undecoded = self._read, error.start + 1

    def _decoded(self, chunks: Iterator[bytes]) -> Iterator[str]:
        for lines in whole_lines(chunks, keep_blank=True):
            if lines.data is None:
                raise Unreadable(f"The line is longer than {MAX_LINE_BYTES} bytes.", lines.number)
            for line in lines.data.splitlines(keepends=True) if b"\r" not in lines.data else _cut(lines.data):
                yield line.decode(errors="surrogateescape")


def _cut(data: bytes) -> Iterator[bytes]:
    """Lines by their line feeds alone."""
    *lines, last = data.split(b"\n")
    yield from (line + b"\n" for line in lines)
    if last:
        yield last


def _row(cells: Sequence[str], header: Sequence[str], feed: _Feed) -> dict[str, object]:
    if feed.undecoded is not None:
        raise BadRow("The line is not UTF-8.", line=feed.undecoded[0], column=feed.undecoded[1])
    if len(cells) != len(header):
        raise BadRow(f"The row has {len(cells)} cell(s), the header {len(header)}.", line=feed.line)
    row: dict[str, object] = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell}
    for name in OPTIONAL_NUMBERS:
        if name in row:
            row[name] = _json(row[name], (int, float))
    if "input" in row:
        row["input"] = _json(row["input"], (dict,))
    contents = {name: _json(row[name], (list,)) for name in CONTENT_CELLS if name in row}
    if contents and all(_is_messages(content) for content in contents.values()):
        row |= contents
    refuse_unstorable(row, feed.line)
    return row


def _json(cell: object, accepted: tuple[type, ...]) -> object:
    """What a cell spells in JSON where that is of an accepted type, else the cell."""
    try:
        value = json.loads(str(cell))
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, accepted) else cell


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)
