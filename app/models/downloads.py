"""A file of the store as an answer: whole, or the one range that is asked for (RFC 9110, 14)."""

import re
from collections.abc import Iterator

from fastapi import Response
from fastapi.responses import StreamingResponse

from app.models.schemas import FileView
from core.errors import ServiceError
from core.storage import Storage

RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


class RangeNotSatisfiable(ServiceError):
    """The range lies outside the file."""

    code, status, title = "range_not_satisfiable", 416, "Range not satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(bytes=size)
        self.headers = {"Content-Range": f"bytes */{size}"}


def file_response(
    storage: Storage, location: str, file: FileView, *, range_: str | None, if_range: str | None, head: bool
) -> Response:
    """The file, or a range of it where `If-Range` allows; raises RangeNotSatisfiable."""
    etag = f'"{file.sha256}"'
    span = _span(range_, file.bytes) if if_range in (None, etag) else None
    start, end = span or (0, file.bytes)
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    status = 200 if span is None else 206
    content: Iterator[bytes] = iter(()) if head else storage.read_chunks(location, start, end)
    return StreamingResponse(content, status, headers, media_type="application/octet-stream")


def _span(range_: str | None, size: int) -> tuple[int, int] | None:
    """Bytes [start, end), or None for the whole file: RFC 9110 has other forms passed over."""
    found = RANGE.fullmatch(range_ or "")
    if found is None or found.group(0) == "bytes=-":
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    else:
        start, end = max(size - int(last), 0), size
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end
