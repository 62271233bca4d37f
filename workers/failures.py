"""Exception -> what the run's row says of it."""

import errno
import json
import signal
from typing import Any

from core.uploading import StoreFailed
from mpo.errors import MPOError
from mpo.short_memory import is_short
from workers.child_protocol import Crashed, Failed

OUTPUT_CHARACTERS = 4_000
LASTING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
)
"""A store that is full, may not be written or is not there: somebody has to mend it first."""


def failed(error: BaseException) -> Failed:
    """What went wrong in a child. Memory is named: less of it can be asked for; the rest is a defect."""
    if isinstance(error, MPOError):
        return Failed(error.code, error.detail, error.retryable, _sayable(error.facts))
    if is_short(error):
        message = "Memory was short: a smaller model, or fewer or shorter texts at once, need less"
        return Failed("out_of_memory", message, retryable=False)
    return Failed("internal_error", f"{type(error).__name__}: {error}", retryable=False)


def store_failed(error: OSError) -> Failed:
    """What the store, or this machine's disk, did not do: tried again where another moment may help."""
    passing = isinstance(error, StoreFailed) and error.errno not in LASTING
    return Failed("storage_failed", f"The store: {error.strerror or error}", retryable=passing)


def failure_row(failure: Failed, output: str) -> dict[str, Any]:
    """The run's `error` column: code, message, the end of the child's output, and facts such as a report."""
    row: dict[str, Any] = {"code": failure.code, "message": failure.message}
    row["output"] = output[-OUTPUT_CHARACTERS:] if failure.code == "internal_error" else None
    if "report" in failure.facts:
        row["report"] = failure.facts["report"]
    return row


def crash_row(crash: Crashed, output: str) -> dict[str, Any]:
    """The same for a process that died."""
    code = crash.exit_code
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    message = f"The process died three times without progress, last by {how}"
    if code == -signal.SIGKILL:
        message += ": so does the system where memory runs out. A dry run tells what the stage needs"
    return {"code": "crashed", "message": message, "output": output[-OUTPUT_CHARACTERS:]}


def _sayable(facts: dict[str, object]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in facts.items():
        plain = value.to_json() if hasattr(value, "to_json") else value
        try:
            json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError):
            plain = str(plain)
        said[name] = plain
    return said
