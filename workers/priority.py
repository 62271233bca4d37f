"""What of a shared processor workers and their children leave to those whose answers somebody waits for."""

import os
from contextlib import suppress
from pathlib import Path

WORKER_NICENESS = 10
CHILD_NICENESS = 15


def yield_to_answers(niceness: int) -> None:
    """Take what API and database leave of the processor: runs take minutes, answers milliseconds.

    Where nobody else wants it, nothing changes. niceness: for this process as it is, at least.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    # Linux weighs sessions, and within them processes, where it groups by session: this process has its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
