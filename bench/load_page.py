"""The section of docs/benchmarks.md that a load writes: its table, and on what machine it was measured."""

import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cpu_time import loop_milliseconds

HEADING = "## Requests a second of a whole stack"
_WIDTH = 128
_BUSY = 0.5
"""Of the cores, in the minute before: above it the page says that others worked there too."""
_COLUMNS = ("requests", "a second", "p50, ms", "p99, ms", "CPU ms a request", "wrong answers")


@dataclass(frozen=True)
class Conditions:
    """How a load was driven. load_average: of the minute before the stack was started. loop_milliseconds: of
    a million turns of a Python loop, on one core."""

    command: str
    seconds: float
    connections: int
    load_average: float
    loop_milliseconds: float

    @classmethod
    def now(cls, arguments: Sequence[str], seconds: float, connections: int) -> "Conditions":
        """Those of a load that is about to begin."""
        command, load = " ".join(["python -m bench.load", *arguments]), os.getloadavg()[0]
        return cls(command, seconds, connections, load, loop_milliseconds())


def write_section(page: Path, conditions: Conditions, rows: Sequence[Sequence[str]], counted: str) -> None:
    """Put the table in the place of the last one. counted: what became of the acknowledged jobs."""
    text = page.read_text()
    begin = text.index(HEADING)
    following = re.compile(r"^##", re.MULTILINE).search(text, begin + len(HEADING))
    end = following.start() if following else len(text)
    page.write_text(text[:begin] + _section(conditions, rows, counted) + text[end:])


def _section(conditions: Conditions, rows: Sequence[Sequence[str]], counted: str) -> str:
    cores = os.cpu_count() or 1
    busy = conditions.load_average > _BUSY * cores
    others = "**other work kept the machine busy**" if busy else "nothing else of weight ran"
    table = [_COLUMNS, ["---"] * len(_COLUMNS), *rows]
    said = (
        f"{cores} cores ({_processor()}; a million turns of a Python loop take "
        f"{conditions.loop_milliseconds:.0f} ms) with API, Postgres, Valkey, workers and generator on them; "
        f"load average {conditions.load_average:.1f} before it began, so that {others}. Default `mpo` jobs "
        "on `tiny`, each with a seed of its own unless the row says otherwise; "
        f"{conditions.connections} connections, {conditions.seconds:g} s a row, closed loop but for the row "
        f"that names a rate, whose times count from when a request was due. {counted}."
    )
    rows_said = ["| " + " | ".join(row) + " |" for row in table]
    said_in_lines = textwrap.wrap(said, _WIDTH, break_on_hyphens=False)
    return "\n".join([HEADING, "", f"    {conditions.command}", "", *said_in_lines, "", *rows_said, "", ""])


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else "of a kind that it does not tell"
