"""Errors as one line on stderr that says what to do, with the exit code that goes with it."""

import re
from dataclasses import dataclass
from typing import Any

import typer

from mpo_client import errors
from mpo_client.cli import exit_codes

# Typer carries click within itself in some versions and imports it in others: the same classes either way.
CLICK_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_LISTS = {"dataset": "mpo datasets list", "job": "mpo jobs list", "model": "mpo models list"}


class Misuse(Exception):
    """The command was called wrongly; the message says how it is called rightly."""


@dataclass(frozen=True)
class Told:
    """What is printed, and how the command ends."""

    line: str
    code: int


def told(error: Exception) -> Told | None:
    """None for what nobody expects: that is a bug, and keeps its traceback."""
    if isinstance(error, Misuse):
        return Told(_one_line(str(error)), exit_codes.USAGE)
    if isinstance(error, CLICK_ERROR):
        return Told(_misused(error), getattr(error, "exit_code", exit_codes.USAGE))
    if isinstance(error, errors.Unreachable):
        line = f"{error}. Is the service running? `mpo up` starts one here; --url names another"
        return Told(_one_line(line), exit_codes.UNREACHABLE)
    if isinstance(error, errors.Refused):
        return Told(_one_line(_refused(error)), exit_codes.REFUSED)
    if isinstance(error, errors.ClientError):
        return Told(_one_line(str(error)), exit_codes.REFUSED)
    if isinstance(error, OSError) and error.filename is not None:
        return Told(_one_line(f"{error.filename}: {error.strerror}"), exit_codes.REFUSED)
    return None


def _refused(error: errors.Refused) -> str:
    if isinstance(error, errors.NotAuthenticated):
        return f"{error.detail}. Give another key: --key-file FILE, MPO_API_KEY, or --state DIR"
    if isinstance(error, errors.NotAllowed):
        return f"{error.detail}. An admin makes one: mpo keys create --scope admin"
    line = error.detail
    for field in error.errors:
        where = ".".join(str(part) for part in field.loc if part not in ("body", "query", "path"))
        if where and where not in line:
            line += f" ({where})"
    missing = re.search(r"(?:[Tt]here is|names) no (?:base )?(dataset|job|model)", line)
    if missing:
        line += f"; `{_LISTS[missing[1]]}` names those that there are"
    if isinstance(error, errors.ServerFailed) and not isinstance(error, errors.NotAvailable):
        line = f"the service failed: {line}; its log tells of this as {error.request_id or 'unknown'}"
    return line


def _misused(error: Any) -> str:
    similar = getattr(error, "possibilities", None)
    line = _one_line(error.message if similar else error.format_message())
    if similar and "did you mean" not in line.lower():
        line = f"{line.rstrip('.')}. Did you mean {' or '.join(sorted(similar))}?"
    context = getattr(error, "ctx", None)
    if context is not None and not line.endswith("?"):
        line += f" (see: {context.command_path} --help)"
    return line


def _one_line(text: str) -> str:
    return " ".join(text.split())
