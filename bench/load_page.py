"""The sections of docs/benchmarks.md that loads write: tables, and on what machine they were measured."""

import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.cpu_time import loop_milliseconds

HEADING = "## Requests a second of a whole stack"
_WIDTH = 128
_BUSY = 0.5
"""Of the cores, in the minute before: above it the page says that others worked there too."""
Table = Sequence[Sequence[str]]
_COLUMNS = ("requests", "a second", "p50, ms", "p99, ms", "CPU ms a request", "wrong answers")


@dataclass(frozen=True)
class Conditions:
    """How a load was driven, and on what. load_average: of the minute before. loop_milliseconds: of a million
    turns of a Python loop, on one core."""

    command: str
    load_average: float
    loop_milliseconds: float

    @classmethod
    def now(cls, command: Sequence[str]) -> "Conditions":
        """Those of a load that is about to begin."""
        return cls(" ".join(command), os.getloadavg()[0], loop_milliseconds())

    def machine(self) -> str:
        """What it ran on."""
        cores = os.cpu_count() or 1
        busy = self.load_average > _BUSY * cores
        others = "**other work kept the machine busy**" if busy else "nothing else of weight ran"
        return (
            f"{cores} cores ({_processor()}; a million turns of a Python loop take "
            f"{self.loop_milliseconds:.0f} ms); load average {self.load_average:.1f} before it began, so "
            f"that {others}"
        )


def spread(numbers: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """Their median, with the smallest and largest."""
    least, most = min(numbers), max(numbers)
    return f"{median(numbers):.{digits}f}{unit} ({least:.{digits}f}, {most:.{digits}f})"


def write_load(
    page: Path, conditions: Conditions, seconds: float, connections: int, rows: Table, counted: str
) -> None:
    """The table of `bench.load`. counted: what became of the acknowledged jobs."""
    said = (
        f"{conditions.machine()}. API, Postgres, Valkey, workers and generator share them. Default `mpo` "
        f"jobs on `tiny`, each with a seed of its own unless the row says otherwise; {connections} "
        f"connections, {seconds:g} s a row, closed loop but for rows that name a rate, whose times count "
        f"from when a request was due. {counted}."
    )
    write_page_section(page, HEADING, conditions.command, said, [_COLUMNS, *rows])


def write_page_section(page: Path, heading: str, command: str, said: str, table: Table) -> None:
    """Put a section in the place of the last one of its heading, or at the end. table: its head first."""
    text = page.read_text()
    begin = text.find(heading)
    begin = len(text) if begin < 0 else begin
    following = re.compile(r"^##", re.MULTILINE).search(text, begin + len(heading))
    end = following.start() if following else len(text)
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    wrapped = textwrap.wrap(said, _WIDTH, break_on_hyphens=False)
    before = text[:begin].rstrip("\n") + "\n\n"
    section = "\n".join([heading, "", f"    {command}", "", *wrapped, "", *lines, "", ""])
    page.write_text((before + section + text[end:]).rstrip("\n") + "\n")


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else "of a kind that it does not tell"
