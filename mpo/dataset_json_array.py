"""A JSON array of rows to rows, one in memory at a time. Torch-free."""

import codecs
import json
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from mpo.dataset_blocks import Item
from mpo.dataset_containers import Unreadable
from mpo.dataset_lines import MAX_LINE_BYTES, refuse_unstorable
from mpo.dataset_rows import DatasetKind, canonical_row
from mpo.errors import BadRow

WHITESPACE = re.compile(r"[ \t\n\r]*")


def rows_of_array(chunks: Iterator[bytes], kind: DatasetKind) -> Iterator[Item]:
    """The rows of an array. Raises Unreadable where the text stops being JSON, as nothing says where the next
    row would begin."""
    text = _Text(chunks)
    text.expect("[")
    if text.peek() != "]":
        while True:
            yield _row(text, kind)
            if text.peek() != ",":
                break
            text.expect(",")
    text.expect("]")
    if text.peek():
        text.fail("More follows after the end of the array.")


def _row(text: "_Text", kind: DatasetKind) -> Item:
    text.peek()
    line, column = text.line, text.column
    value, raw, outlaw = text.value()
    try:
        if not raw.isascii():
            _refuse_other_bytes(raw, line, column)
        if outlaw is not None:
            raise BadRow(f"The row is not JSON: it holds {outlaw}.", line=line, column=column)
        if not isinstance(value, dict):
            raise BadRow("A row must be a JSON object.", line=line, column=column)
        if "\\u" in raw:
            refuse_unstorable(value, line, column)
        return canonical_row(value, kind, line), line, len(raw)
    except BadRow as error:
        return error, line, len(raw)


def _refuse_other_bytes(raw: str, line: int, column: int) -> None:
    try:
        raw.encode()
    except UnicodeEncodeError as error:
        before = raw[: error.start]
        line += before.count("\n")
        column = error.start - before.rfind("\n") if "\n" in before else column + error.start
        raise BadRow("The row is not UTF-8.", line=line, column=column) from None


class _Text:
    """Text that is read as it is needed; bytes that are not UTF-8 stay in it as lone surrogates."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.line, self.column = 1, 1
        self._chunks, self._text, self._at = chunks, "", 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._outlaw: str | None = None
        self._json = json.JSONDecoder(parse_constant=self._constant, parse_int=self._integer)

    def peek(self) -> str:
        """The next character that is not white space, which is passed over; none at the end."""
        while True:
            blank = WHITESPACE.match(self._text, self._at)
            end = blank.end() if blank is not None else self._at
            self._pass_to(end)
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Passes over a character; raises Unreadable where another one stands."""
        if self.peek() != character:
            self.fail(
                f"The file is not JSON: {'a comma or ' if character == ']' else ''}{character!r} is missing."
            )
        self._pass_to(self._at + 1)

    def value(self) -> tuple[object, str, str | None]:
        """The value that begins here, its text, and what it holds that JSON does not have."""
        while True:
            self._outlaw = None
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                reached = error.pos - self._at
                if not self._more():
                    self._pass_to(self._at + reached)
                    self.fail(f"The file is not JSON: {error.msg}.")
            except RecursionError:
                self.fail("The row is nested too deep.")
            else:
                # A number may go on behind the end of what has been read.
                length = end - self._at
                if end < len(self._text) or not self._more():
                    raw = self._text[self._at : self._at + length]
                    self._pass_to(self._at + length)
                    return value, raw, self._outlaw

    def fail(self, message: str) -> NoReturn:
        """Raises Unreadable with the place that has been reached."""
        raise Unreadable(message, self.line, self.column)

    def _more(self) -> bool:
        if len(self._text) - self._at > MAX_LINE_BYTES:
            self.fail(f"The row is not JSON, or longer than {MAX_LINE_BYTES} characters.")
        chunk = next(self._chunks, None)
        self._text = self._text[self._at :] + self._utf8.decode(chunk or b"", final=chunk is None)
        self._at = 0
        return chunk is not None

    def _pass_to(self, end: int) -> None:
        breaks = self._text.count("\n", self._at, end)
        self.line += breaks
        self.column = end - self._text.rfind("\n", self._at, end) if breaks else self.column + end - self._at
        self._at = end

    def _constant(self, name: str) -> None:
        self._outlaw = name

    def _integer(self, digits: str) -> int:
        if len(digits) > sys.get_int_max_str_digits() > 0:
            self._outlaw = "a number of too many digits"
            return 0
        return int(digits)
