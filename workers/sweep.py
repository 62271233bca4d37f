"""`python -m workers.sweep`: sweep the whole store now, and say what was freed."""

import argparse
import logging
import math
import sys
from datetime import timedelta
from threading import Event

from core.retention import let_go
from core.settings import settings
from core.storage import storage
from core.sweeping import Freed, Sweep
from workers.scratch import clear_scratch, scratch_folder
from workers.sweeper import walk

LONGEST_SECONDS = 10**9


def main() -> int:
    """Sweep, with the settings' grace or another one; exits 1 where something could not be removed."""
    now = settings()
    parser = argparse.ArgumentParser(prog="python -m workers.sweep", description=__doc__)
    parser.add_argument(
        "--grace-seconds",
        type=seconds,
        default=now.sweep_grace_seconds,
        help="age of what is freed. 0 frees all that is provably over, under downloads that have begun too; "
        "uploads without a dataset always wait for MPO_SWEEP_GRACE_SECONDS",
    )
    parser.add_argument(
        "--keep-seconds",
        type=seconds,
        default=now.keep_unreferenced_seconds,
        help="how long results that no job refers to, and dead runs' checkpoints, serve as a cache",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    grace, keep = (timedelta(seconds=s) for s in (arguments.grace_seconds, arguments.keep_seconds))
    freed = sweep_all(grace, keep)
    cleared = clear_scratch(scratch_folder(), grace)
    print(f"{freed}; cleared {cleared} scratch folders")
    return 1 if freed.failed else 0


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to {LONGEST_SECONDS}")
    return number


def sweep_all(grace: timedelta, keep: timedelta) -> Freed:
    """Let go of what has outlived its use, then sweep from the first run to the last, and the uploads."""
    let_go(keep, grace)
    sweep = Sweep(storage(), grace, timedelta(seconds=settings().sweep_grace_seconds))
    walk(sweep, "", math.inf, Event())
    return sweep.freed


if __name__ == "__main__":
    sys.exit(main())
