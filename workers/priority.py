"""What gives way to what on a machine that API, database and workers share."""

import os
from contextlib import suppress
from pathlib import Path

CHILD = 4
"""A child's niceness above its worker's: a lease must be renewed in time, whatever the child computes."""

AUTOGROUP = Path("/proc/self/autogroup")


def give_way(steps: int) -> None:
    """Leave the processor to what answers, by so many steps of niceness.

    Runs take minutes, answers milliseconds. Where nobody else wants the processor, nothing changes.
    """
    niceness = os.nice(steps)
    if os.getsid(0) == os.getpid():
        # Linux weighs sessions, and within them processes, where it groups by session: this one is its own,
        # and not a terminal's, whose other programs it would slow down.
        with suppress(OSError):
            AUTOGROUP.write_text(str(niceness))
