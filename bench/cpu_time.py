"""CPU time and memory of processes and of all that they started, from Linux's /proc; how fast a core is."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """Seconds of CPU so far, by name, of each process, its descendants, and those of them that have ended."""
    # utime, stime, and both of children that were waited for.
    return {
        name: sum(sum(map(int, fields[11:15])) for fields in family) / _TICKS_A_SECOND
        for name, family in _families(roots).items()
    }


def resident_bytes(roots: Mapping[str, int]) -> dict[str, int]:
    """Memory by name, of each process and its descendants; what they share is counted in each of them."""
    return {
        name: sum(int(fields[21]) for fields in family) * _PAGE_BYTES
        for name, family in _families(roots).items()
    }


def _families(roots: Mapping[str, int]) -> dict[str, list[list[str]]]:
    """The fields of /proc/PID/stat from the state on, by name, of each process and of its descendants."""
    fields = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
    names = {pid: name for name, pid in roots.items()}
    found: dict[str, list[list[str]]] = {name: [] for name in roots}
    for pid, its in fields.items():
        above = pid
        while above not in names and above in fields:
            above = int(fields[above][1])
        if above in names:
            found[names[above]].append(its)
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
