"""JSON Lines to blocks of rows. Torch-free."""

import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

import numpy as np

from mpo.dataset_blocks import Block, Item, block_of
from mpo.dataset_columns import parse_block
from mpo.dataset_rows import DatasetKind, canonical_row
from mpo.errors import BadRow

MAX_LINE_BYTES = 2**24
THREADED_BYTES = 2**23
"""A file of fewer bytes is read in the calling thread."""
MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines; number: the first one's, from 1. data: None for one line above `MAX_LINE_BYTES`."""

    number: int
    data: bytes | None


def whole_lines(chunks: Iterator[bytes], *, keep_blank: bool = False) -> Iterator[Lines]:
    """Chunks cut at the ends of lines; no more than one chunk and one accepted line in memory. Pieces of
    blank lines alone are passed over, unless keep_blank."""
    number, rest, size, too_long = 1, list[bytes](), 0, False
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            start = 0
            if too_long:
                yield Lines(number, None)
                number, start, too_long = number + 1, chunk.find(b"\n") + 1, False
            data = b"".join([*rest, chunk[start:end]])
            rest, size = [], 0
            if data and (keep_blank or not data.isspace()):
                yield Lines(number, data)
            number += int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))
        if end < len(chunk) and not too_long:
            rest.append(chunk[end:])
            size += len(chunk) - end
        if size > MAX_LINE_BYTES:
            # What follows of this line is not kept.
            rest, size, too_long = [], 0, True
    if too_long:
        yield Lines(number, None)
    elif rest and (keep_blank or not b"".join(rest).isspace()):
        yield Lines(number, b"".join(rest))


def blocks_of_lines(chunks: Iterator[bytes], size: int, kind: DatasetKind) -> Iterator[Block]:
    """The rows of JSON Lines. size: bytes of the file, which decide whether threads are worth it: Arrow works
    without the interpreter's lock."""
    pieces = whole_lines(chunks)
    if size < THREADED_BYTES:
        yield from (read_lines(piece, kind) for piece in pieces)
        return
    threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, MAX_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Block]] = deque()
        try:
            ahead.extend(pool.submit(read_lines, piece, kind) for piece in islice(pieces, threads + 1))
            while ahead:
                block = ahead.popleft().result()
                ahead.extend(pool.submit(read_lines, piece, kind) for piece in islice(pieces, 1))
                yield block
        finally:
            for future in ahead:
                future.cancel()


def read_lines(lines: Lines, kind: DatasetKind) -> Block:
    """The rows of some lines: by columns where these are plainly good, else one by one."""
    if lines.data is None:
        problem = BadRow(f"The line is longer than {MAX_LINE_BYTES} bytes.", line=lines.number)
        return block_of([(problem, lines.number, 0)], kind)
    if len(lines.data) <= MAX_LINE_BYTES and (block := parse_block(lines.data, lines.number, kind)):
        return block
    return block_of(list(_items(lines.data, lines.number, kind)), kind)


def _items(data: bytes, first_line: int, kind: DatasetKind) -> Iterator[Item]:
    for line, raw in enumerate(data.split(b"\n"), first_line):
        if not raw or raw.isspace():
            continue
        try:
            if len(raw) > MAX_LINE_BYTES:
                raise BadRow(f"The line is longer than {MAX_LINE_BYTES} bytes.", line=line)
            yield canonical_row(parse_line(raw, line), kind, line), line, len(raw)
        except BadRow as error:
            yield error, line, len(raw)


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
        if "\\u0000" in text or "\\ud" in text or "\\uD" in text:
            refuse_unstorable(value, line)
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


def refuse_unstorable(value: object, line: int, column: int | None = None) -> None:
    """Raises BadRow where a string, however deep, holds what the database or UTF-8 cannot."""
    for text in _strings(value):
        if "\0" in text:
            raise BadRow("A string holds a NUL character (U+0000).", line=line, column=column)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow("A string holds half of a surrogate pair.", line=line, column=column) from None


def _strings(value: object) -> Iterator[str]:
    # Not by recursion: JSON may nest deeper than Python calls.
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [*value.keys(), *value.values()]
