"""The histogram of reward gaps and the numbers that go with it. Torch-free."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from mpo.errors import InvalidRange
from mpo.gap_index import Floats, GapIndex, Integers
from mpo.intervals import wilson_interval
from mpo.parts import Part

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST_RELATIVE_WIDTH = 2.0**-40
"""Width of bins around one value as a share of it: leaves 4,096 floats among them."""

WITHIN = 1.0
"""`share_within_one` counts the gaps of at most this size, in reward units."""


@dataclass(frozen=True)
class RewardGapHistogram:
    """Counts of gaps by bin, in reward units, and summary numbers; null where there is no pair.

    Bins are [a, b), the last one closed; below, above: pairs outside them. accuracy: share of gap > 0, ties
    half. bin_accuracy: the same by bin, of absolute gaps only: it says nothing about signed ones.
    """

    pairs: int
    sign: Literal["signed", "absolute"]
    bin_edges: list[float]
    counts: list[int]
    below: int
    above: int
    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None
    bin_accuracy: list[float | None] | None
    share_within_one: float | None
    quantiles: Mapping[str, float] | None
    mean: float | None
    std: float | None

    def to_json(self) -> dict[str, object]:
        """The numbers by name, as JSON values."""
        interval = None if self.accuracy_ci95 is None else list(self.accuracy_ci95)
        return asdict(self) | {"accuracy_ci95": interval}


def reward_gap_histogram(
    index: GapIndex,
    *,
    bins: int = 40,
    lower: float | None = None,
    upper: float | None = None,
    part: Part = "all",
    sign: Literal["signed", "absolute"] = "signed",
) -> RewardGapHistogram:
    """The histogram of a part's gaps (signed) or their sizes (absolute), exact at any number of bins.

    lower, upper: ends of the bins; None = the lowest and highest value. Raises InvalidRange where lower is
    not below upper, KeyError where the index lacks the part.
    """
    gaps = np.asarray(index.parts[part].gaps)
    values = gaps if sign == "signed" else np.sort(np.abs(gaps))
    edges = _edges(values, bins, lower, upper)
    counts = _counts(values, edges)
    below = int(np.searchsorted(values, edges[0], "left"))
    positive, negative = gaps[np.searchsorted(gaps, 0, "right") :], gaps[: np.searchsorted(gaps, 0, "left")]
    wins = len(positive) + (len(gaps) - len(positive) - len(negative)) / 2
    some = len(gaps) > 0
    return RewardGapHistogram(
        pairs=len(gaps),
        sign=sign,
        bin_edges=[float(edge) for edge in edges],
        counts=[int(count) for count in counts],
        below=below,
        above=len(gaps) - below - int(counts.sum()),
        accuracy=wins / len(gaps) if some else None,
        accuracy_ci95=wilson_interval(wins, len(gaps)) if some else None,
        bin_accuracy=_bin_accuracy(counts, positive, negative, edges) if sign == "absolute" else None,
        share_within_one=float((np.abs(gaps) <= WITHIN).mean()) if some else None,
        quantiles=_quantiles(values) if some else None,
        mean=float(values.mean()) if some else None,
        std=float(values.std()) if some else None,
    )


def _edges(values: Floats, bins: int, lower: float | None, upper: float | None) -> Floats:
    """bins + 1 edges; as NumPy does, half a unit to both sides of values that are all equal."""
    low, high = (float(values[0]), float(values[-1])) if len(values) else (0.0, 1.0)
    if lower is None and upper is None and low == high:
        low, high = low - _unit(low) / 2, high + _unit(high) / 2
    # One given end may lie beyond all values: the bins then cover one unit from there, and count nothing.
    low = lower if lower is not None else (low if upper is None or low < upper else upper - _unit(upper))
    high = upper if upper is not None else (high if low < high else low + _unit(low))
    if not (np.isfinite([low, high]).all() and low < high):
        raise InvalidRange(
            f"lower must be below upper; they are {low:g} and {high:g}.", lower=low, upper=high
        )
    return np.linspace(low, high, bins + 1)


def _unit(value: float) -> float:
    """1, or more where floats of this size are so far apart that a unit holds no bins."""
    return max(1.0, abs(value) * LEAST_RELATIVE_WIDTH)


def _counts(values: Floats, edges: Floats) -> Integers:
    places = np.append(
        np.searchsorted(values, edges[:-1], "left"), np.searchsorted(values, edges[-1], "right")
    )
    return np.diff(places)


def _bin_accuracy(counts: Integers, positive: Floats, negative: Floats, edges: Floats) -> list[float | None]:
    right, wrong = _counts(positive, edges), _counts(-negative[::-1], edges)
    wins = right + (counts - right - wrong) / 2
    return [float(won / count) if count else None for won, count in zip(wins, counts, strict=True)]


def _quantiles(values: Floats) -> dict[str, float]:
    found = np.quantile(values, QUANTILES)
    return {f"{share:g}": float(value) for share, value in zip(QUANTILES, found, strict=True)}
