"""What an upload is, by its bytes, and its bytes unpacked. Torch-free."""

import codecs
import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from mpo.dataset_blocks import CONTENT_COLUMNS
from mpo.dataset_columns import OTHER_CONTENTS

CHUNK_BYTES = 2**20
MAX_UNPACKED_BYTES = 2**37
"""A gzip file that unpacks to more than this is not read to its end."""
FREELY_UNPACKED_BYTES, MAX_RATIO = 2**28, 300
"""Nor is one that unpacks to more than the first and to more than so many times its size."""

GZIP_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet): upload the file that is in it",
    b"7z\xbc\xaf": "a 7z archive: upload the file that is in it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it, or pack it by gzip",
    b"BZh": "packed by bzip2: unpack it, or pack it by gzip",
    b"\xfd7zXZ": "packed by xz: unpack it, or pack it by gzip",
    b"PARE": "a Parquet file whose footer is encrypted: write it without encryption",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"%PDF": "a PDF document",
    codecs.BOM_UTF16_LE: "text in UTF-16: write it in UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: write it in UTF-8",
}
ACCEPTED = "accepted are JSON Lines, a JSON array of rows, CSV with a header, and Parquet, each also gzip"
NAMED_COLUMNS = frozenset((*(name for names in CONTENT_COLUMNS.values() for name in names), *OTHER_CONTENTS))

Container = Literal["jsonl", "json", "csv", "parquet"]
Progress = Callable[[int, int], None]
"""Called with the bytes of the file that have been read, and the file's size."""


class Unreadable(Exception):
    """The rest of a file cannot be read. line, column: where in the text, from 1."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


@dataclass(frozen=True)
class Upload:
    """An upload, opened. chunks: its bytes, unpacked, without a byte order mark."""

    container: Container
    chunks: Iterator[bytes]


def is_gzip(file: BinaryIO) -> bool:
    """Whether the file begins as gzip does; leaves it at its beginning."""
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    return magic == GZIP_MAGIC


def open_upload(file: BinaryIO, size: int, on_progress: Progress) -> Upload:
    """Looks what a file of this many bytes is; raises Unreadable."""
    chunks = _unpacked(file, size, on_progress) if is_gzip(file) else _plain(file, size, on_progress)
    head = next(chunks, b"")
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise Unreadable(f"The file is {what}; {ACCEPTED}.")
    if head.startswith(GZIP_MAGIC):
        raise Unreadable("The file is gzip within gzip: unpack it once.")
    head = head.removeprefix(codecs.BOM_UTF8)
    return Upload(_container(head), _after(head, chunks))


def _after(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _container(head: bytes) -> Container:
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    start = head.lstrip()[: 2**16]
    if b"\0" in start[:4]:
        raise Unreadable("The file begins with NUL bytes, as text in UTF-16 does: write it in UTF-8.", 1, 1)
    if start[:1] == b"<":
        raise Unreadable(f"The file is HTML or XML, maybe the page of an error; {ACCEPTED}.", 1, 1)
    if start[:1] == b"[":
        return "json"
    if start[:1] != b"{" and NAMED_COLUMNS & set(_header(start)):
        return "csv"
    return "jsonl"


def _header(start: bytes) -> list[str]:
    """The cells of the first line, read as CSV; none where that is not possible."""
    try:
        line = start.splitlines()[:1]
        return next(csv.reader([text.decode(errors="replace") for text in line]), [])
    except csv.Error:
        return []


def _plain(file: BinaryIO, size: int, on_progress: Progress) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        on_progress(file.tell(), size)


def _unpacked(file: BinaryIO, size: int, on_progress: Progress) -> Iterator[bytes]:
    unpacked, total = cast(BinaryIO, gzip.GzipFile(fileobj=file)), 0
    try:
        while chunk := unpacked.read(CHUNK_BYTES):
            total += len(chunk)
            is_bomb = total > max(FREELY_UNPACKED_BYTES, MAX_RATIO * size)
            if is_bomb or total > MAX_UNPACKED_BYTES:
                raise Unreadable(f"The file unpacks to more than {total - len(chunk)} bytes: too many.")
            yield chunk
            on_progress(file.tell(), size)
    except EOFError:
        raise Unreadable("The gzip file is cut off: its end is missing.") from None
    except (zlib.error, gzip.BadGzipFile):
        raise Unreadable("The gzip file is damaged, or followed by something else.") from None
