"""Reward gaps kept sorted, so that histograms, quantiles, previews and pages are binary searches. Torch-free.

A gap is r(prompt, chosen) - r(prompt, rejected), in reward units. Gaps are kept as float64, the scores' own
type: counts then agree exactly with what anyone counts in scores.parquet.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpo.errors import InvalidScores
from mpo.parts import PARTS, Order, Part

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-2, 1e3


@dataclass(frozen=True)
class Scores:
    """The columns of scores.parquet. ids, rewards and gaps: (n,); fold, tokens: (n,) or None."""

    ids: list[str]
    reward_chosen: Floats
    reward_rejected: Floats
    gaps: Floats
    folds: list[int | None]
    tokens: Integers | None


def read_scores(path: Path) -> Scores:
    """The scores of pairs; raises InvalidScores where one is missing or not finite, or an id comes twice."""
    table = pq.read_table(path)
    rewards = {
        name: table.column(name).cast("float64").to_numpy(zero_copy_only=False)
        for name in ("reward_chosen", "reward_rejected", "gap")
    }
    ids, names = table.column("id").to_pylist(), table.schema.names
    for name, values in rewards.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InvalidScores(f"{name} of pair {ids[row]} is not a finite number.", id=ids[row])
    if pc.count_distinct(table.column("id")).as_py() != len(ids):
        raise InvalidScores("An id comes twice in the scores.")
    return Scores(
        ids,
        rewards["reward_chosen"],
        rewards["reward_rejected"],
        rewards["gap"],
        folds=table.column("fold").to_pylist() if "fold" in names else [None] * len(ids),
        tokens=table.column("tokens").to_numpy().astype(np.int64) if "tokens" in names else None,
    )


def fit_temperature(gaps: Floats) -> float:
    """The T that makes σ(g/T) the likeliest probability of the labels, all of which say "chosen".

    gaps: (n,) of pairs that the reward model has not seen. Minimizes -Σ log σ(g/T) over [0.01, 1000] (Guo et
    al. 2017, arXiv 1706.04599).
    """
    low, high = -np.log(HIGHEST_TEMPERATURE), -np.log(LOWEST_TEMPERATURE)
    # In a = 1/T the log-likelihood is concave: its slope Σ g σ(-a g) changes its sign once at most. It rounds
    # to 0 only where no gap is below 0: then the steepest sigmoid is the likeliest.
    while high - low > 1e-10:
        middle = (low + high) / 2
        slope = float((gaps * (1 - np.tanh(gaps * np.exp(middle) / 2))).sum())
        low, high = (middle, high) if slope >= 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def expected_accuracies(gaps: Floats, temperature: float) -> Floats:
    """σ(|g|/T): the probability, by the reward model, that it ranks each pair as people do."""
    result: Floats = 0.5 * (1 + np.tanh(np.abs(gaps) / (2 * temperature)))
    return result


@dataclass(frozen=True)
class SortedGaps:
    """Gaps of a part in rising order, what to page by, and sums from the lowest gap on.

    gaps: (n,); order: (n,), the row of each in its file; absolute_order: (n,), the rows by rising |gap|;
    gap_sums, expected_sums (of σ(|g|/T)), token_sums: (n + 1,), at k the sum over the k lowest gaps.
    """

    gaps: Floats
    order: Integers
    absolute_order: Integers
    gap_sums: Floats
    expected_sums: Floats
    token_sums: Integers | None = None

    @classmethod
    def of(cls, gaps: Floats, temperature: float, tokens: Integers | None = None) -> "SortedGaps":
        """Sorts. gaps, tokens: (n,), in the order of the file's rows; equal gaps keep that order."""
        order = np.argsort(gaps, kind="stable").astype(np.int64)
        rising = gaps[order]
        return cls(
            gaps=rising,
            order=order,
            absolute_order=np.argsort(np.abs(gaps), kind="stable").astype(np.int64),
            gap_sums=np.concatenate([[0.0], np.cumsum(rising)]),
            expected_sums=np.concatenate([[0.0], np.cumsum(expected_accuracies(rising, temperature))]),
            token_sums=None if tokens is None else np.concatenate([[0], np.cumsum(tokens[order])]),
        )

    def rows(self, order: Order, start: int, count: int) -> list[int]:
        """A page of row numbers: those at places start to start + count (exclusive) of that order."""
        rising = self.absolute_order if order.endswith("abs_gap") else self.order
        if order.startswith("-"):
            stop = max(0, len(rising) - start)
            return [int(row) for row in rising[max(0, stop - count) : stop][::-1]]
        return [int(row) for row in rising[start : start + count]]


@dataclass(frozen=True)
class GapIndex:
    """Sorted gaps by part, and the temperature of `expected_accuracy`.

    Rows of `all` count in split.parquet (before the split: in scores.parquet), rows of another part in that
    part's own file. Gaps of `all` are as scored; those of exchanged pairs in `easy` have the other sign.
    """

    parts: Mapping[Part, SortedGaps]
    temperature: float

    def save(self, folder: Path) -> None:
        """Writes one .npy a part and column, and index.json, into a new folder."""
        folder.mkdir()
        for part, columns in self.parts.items():
            for name, column in vars(columns).items():
                if column is not None:
                    np.save(folder / f"{part}.{name}.npy", column, allow_pickle=False)
        (folder / "index.json").write_text(json.dumps({"temperature": self.temperature}) + "\n")


def index_scores(scores: Scores) -> GapIndex:
    """The index of pairs that are scored and not split: `all` alone, in memory."""
    temperature = fit_temperature(scores.gaps)
    return GapIndex({"all": SortedGaps.of(scores.gaps, temperature, scores.tokens)}, temperature)


def open_index(folder: Path) -> GapIndex:
    """The index that `GapIndex.save` wrote, as memory maps: opening reads almost nothing."""
    temperature = json.loads((folder / "index.json").read_text())["temperature"]

    def column(part: Part, name: str) -> Any:
        return np.load(folder / f"{part}.{name}.npy", mmap_mode="r", allow_pickle=False)

    def sorted_gaps(part: Part) -> SortedGaps:
        names = [n for n in SortedGaps.__dataclass_fields__ if (folder / f"{part}.{n}.npy").exists()]
        return SortedGaps(**{name: column(part, name) for name in names})

    present = [part for part in PARTS if (folder / f"{part}.gaps.npy").exists()]
    return GapIndex({part: sorted_gaps(part) for part in present}, temperature)
