"""Histograms and curves out of block characters.

A few lines of our own in place of plotext: a bin a line with its exact count reads better at 80 columns than
a chart with axes, and that library is untyped and keeps one global figure.
"""

import math
from collections.abc import Sequence

from rich.text import Text

from mpo_client.reward_gaps import RewardGaps

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"
_LABELS = 26
"""Columns of a histogram that are no bar."""


def histogram(gaps: RewardGaps, width: int) -> Text:
    """A bin a line, lowest first; a rule where the threshold lies."""
    room, largest = max(10, width - _LABELS), max(gaps.counts, default=0)
    text, ruled = Text(no_wrap=True), False
    for low, high, count in zip(gaps.bin_edges, gaps.bin_edges[1:], gaps.counts, strict=False):
        if not ruled and gaps.threshold is not None and gaps.threshold <= low:
            text.append(_rule(gaps.threshold, width), "dim")
            ruled = True
        text.append(f"{low:8.3f} {high:8.3f} {count:6} ")
        text.append(f"{bar(count, largest, room)}\n", "green" if ruled else "yellow")
    if not ruled and gaps.threshold is not None:
        text.append(_rule(gaps.threshold, width), "dim")
    return text


def _rule(threshold: float, width: int) -> str:
    label = f"── threshold {threshold:.3f} "
    return f"{label}{'─' * max(0, min(width, 80) - len(label))}\n"


def bar(value: float, largest: float, width: int) -> str:
    """A bar to an eighth of a column; whatever is not nothing is seen."""
    eighths = round(value / largest * width * 8) if largest else 0
    if value:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def curve(values: Sequence[float | None], width: int, height: int = 1) -> list[str]:
    """Rows of a filled curve, the top one first; a column is the mean of its values, a gap has none."""
    columns = _columns(values, width)
    known = [value for value in columns if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = (high - low) or 1.0
    steps = height * 8 - 1
    levels = [0 if value is None else 1 + round((value - low) / span * steps) for value in columns]
    rows = range(height - 1, -1, -1)
    return ["".join(_LEVELS[min(8, max(0, level - 8 * row))] for level in levels) for row in rows]


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    count = min(width, len(values))
    means: list[float | None] = []
    for column in range(count):
        part = values[column * len(values) // count : (column + 1) * len(values) // count]
        known = [value for value in part if value is not None and math.isfinite(value)]
        means.append(sum(known) / len(known) if known else None)
    return means
