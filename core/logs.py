"""Log lines that a machine can read: one JSON object each, with the ids of the work that it speaks of.

`bind` names the request, job or run that the code inside it works for; every line logged there carries the
names, whichever module or library logs it. Lines carry ids, never prompts, keys or bodies.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from core.settings import settings

_bound: ContextVar[Mapping[str, str | int]] = ContextVar("log_fields", default={})  # noqa: B039  # never written to


@contextmanager
def bind(**fields: str | int | None) -> Iterator[None]:
    """Within the block every log line of this thread or task carries these; None leaves a field out."""
    said = {name: value for name, value in fields.items() if value is not None}
    token = _bound.set({**_bound.get(), **said})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_request() -> str | None:
    """The id of the HTTP request that is being worked for, where it is known."""
    found = _bound.get().get("request_id")
    return str(found) if found is not None else None


def configure(process: str, stream: TextIO | None = None) -> None:
    """Send all log lines of this process to a stream, stderr by default. process: who speaks.

    Leaves alone what is configured already: under a test, or within another program.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(process) if settings().log_format == "json" else TextLines(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("uvicorn", "uvicorn.error"):
        # Its own handlers write lines of another format.
        theirs = logging.getLogger(name)
        theirs.handlers, theirs.propagate, theirs.level = [], True, logging.NOTSET
    # A line for every request to the store, every download or every ring would drown all others.
    for name in ("httpx", "httpcore", "botocore", "s3fs", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """ts (RFC 3339, UTC), level, logger, message, process, then what is bound, then an exception's text."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str | int] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": self._process,
            "pid": record.process or 0,
            **_bound.get(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(logging.Formatter):
    """The same for people."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _bound.get().items())
        return f"{super().format(record)} {fields}".rstrip()
