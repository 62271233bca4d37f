"""The histogram of reward gaps as a picture and as a table."""

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from app.artifacts.schemas import RewardGaps
from mpo.parts import TARGETS, TargetPart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Counts = Mapping[TargetPart, list[int]]

COLOURS: Mapping[TargetPart, str] = {"easy": "#1f9e89", "difficult": "#f3a33c", "dropped": "#b5b5b5"}
INK, FAINT = "#2b2b33", "#d9d9de"
SIZE_INCHES, DOTS_AN_INCH = (9.0, 4.8), 150


def draw_reward_gaps(gaps: RewardGaps, counts: Counts, form: Literal["png", "svg"]) -> bytes:
    """A stacked histogram: what is easy, what is difficult, and where the threshold cuts."""
    # Late: matplotlib takes a second to import. Without pyplot it holds no state that threads could share.
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_AN_INCH, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _draw_bars(axes, gaps, counts)
    _draw_threshold(axes, gaps)
    _label(axes, gaps)
    drawn = io.BytesIO()
    # Without a date the same gaps give the same bytes.
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(drawn, format=form, metadata=metadata)
    return drawn.getvalue()


def write_csv(gaps: RewardGaps, counts: Counts) -> str:
    """A line a bin: its ends, its count in all and by part, and its accuracy where that says something."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["lower", "upper", "count", *TARGETS, "accuracy"])
    accuracies = gaps.bin_accuracy or [None] * len(gaps.counts)
    edges = zip(gaps.bin_edges, gaps.bin_edges[1:], strict=False)
    for place, (lower, upper) in enumerate(edges):
        by_part = [counts[part][place] for part in TARGETS]
        writer.writerow([lower, upper, gaps.counts[place], *by_part, accuracies[place]])
    return out.getvalue()


def _draw_bars(axes: "Axes", gaps: RewardGaps, counts: Counts) -> None:
    lefts = gaps.bin_edges[:-1]
    widths = [upper - lower for lower, upper in zip(gaps.bin_edges, gaps.bin_edges[1:], strict=False)]
    bottoms = [0] * len(lefts)
    sizes = {"easy": gaps.easy, "difficult": gaps.difficult, "dropped": gaps.dropped}
    for part in TARGETS:
        if not sizes[part]:
            continue
        axes.bar(
            lefts,
            counts[part],
            widths,
            bottom=bottoms,
            align="edge",
            color=COLOURS[part],
            edgecolor="white",
            linewidth=0.6 if len(lefts) <= 100 else 0,
            label=f"{part}  {sizes[part]:,} pairs",
            zorder=2,
        )
        bottoms = [below + count for below, count in zip(bottoms, counts[part], strict=True)]


def _draw_threshold(axes: "Axes", gaps: RewardGaps) -> None:
    low, high = gaps.bin_edges[0], gaps.bin_edges[-1]
    axes.set_xlim(low, high)
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1] * 1.08))
    if low < 0 < high:
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.4, zorder=1)
    if low <= gaps.threshold <= high:
        axes.axvline(gaps.threshold, color=INK, linewidth=1.4, linestyle=(0, (5, 3)), zorder=3)
        right = gaps.threshold < low + 0.75 * (high - low)
        axes.annotate(
            f"threshold {gaps.threshold:.3g}",
            (gaps.threshold, 1),
            xycoords=("data", "axes fraction"),
            xytext=(6 if right else -6, -6),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top",
            color=INK,
            fontsize=10,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            zorder=4,
        )


def _label(axes: "Axes", gaps: RewardGaps) -> None:
    gap = "r(chosen) − r(rejected)"
    axes.set_xlabel(f"reward gap  {gap if gaps.sign == 'signed' else f'|{gap}|'}, in reward units", color=INK)
    axes.set_ylabel("pairs", color=INK)
    title = "Reward gaps" if gaps.part == "all" else f"Reward gaps of the {gaps.part} pairs"
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold")
    axes.set_title(_accuracy(gaps), loc="right", color=INK, fontsize=10)
    axes.grid(axis="y", color=FAINT, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, length=0)
    axes.locator_params(axis="y", integer=True)
    if gaps.pairs:
        axes.legend(loc="best", frameon=False, labelcolor=INK, fontsize=10)


def _accuracy(gaps: RewardGaps) -> str:
    if gaps.accuracy is None or gaps.accuracy_ci95 is None:
        return "no pairs"
    low, high = (100 * end for end in gaps.accuracy_ci95)
    outside = f"   ({gaps.below + gaps.above:,} outside)" if gaps.below + gaps.above else ""
    share = f"accuracy {100 * gaps.accuracy:.1f} %  [{low:.1f}, {high:.1f}]"
    return f"{share}   {gaps.pairs:,} pairs{outside}"
