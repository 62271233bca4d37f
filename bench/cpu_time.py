"""CPU time of processes and of all that they started, from Linux's /proc; and how fast one core is."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """Seconds of CPU so far, by name, of each process, its descendants, and those of them that have ended."""
    parents, ticks = {}, {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        # utime, stime, and both of children that were waited for.
        ticks[pid] = sum(map(int, fields[11:15]))
    names = {pid: name for name, pid in roots.items()}
    found = dict.fromkeys(roots, 0.0)
    for pid, spent in ticks.items():
        above = pid
        while above not in names and above in parents:
            above = parents[above]
        if above in names:
            found[names[above]] += spent / _TICKS_A_SECOND
    return found


def loop_milliseconds() -> float:
    """What a million turns of a plain Python loop take: machines differ by a factor of three."""
    spent = []
    for _ in range(3):
        started, total = time.process_time(), 0
        for number in range(1_000_000):
            total += number * number
        spent.append(1000 * (time.process_time() - started))
    return min(spent)
