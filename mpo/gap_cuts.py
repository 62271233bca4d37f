"""Where a split cuts the sorted gaps, and what it would give. Torch-free.

Gou and Nguyen, arXiv 2403.19443. With γ the threshold and s the gap g (signed) or |g| (absolute), a pair is
easy iff s ≥ γ; of the others, a signed g < 0 with g ≤ -|γ| contradicts its label clearly and goes where
`negative` says; the rest is difficult. Every pair is in exactly one part.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from mpo.config import SplitStage
from mpo.errors import EmptySplit
from mpo.gap_index import Floats, GapIndex, SortedGaps
from mpo.parts import TARGETS, TargetPart

WHY = (
    "at_or_above_threshold",
    "below_threshold",
    "negative_difficult",
    "negative_drop",
    "negative_flip",
    "negative_keep_easy",
)


@dataclass(frozen=True)
class Cut:
    """A run of pairs in rising order of their gaps, places start to stop (exclusive), and where it goes."""

    part: TargetPart
    why: str
    start: int
    stop: int


@dataclass(frozen=True)
class PartSummary:
    """Numbers of a part; null where it is empty, tokens also where the scores do not tell them.

    accuracy: share of gap > 0, ties half. expected_accuracy: mean of σ(|g|/T). tokens: prompts and both
    responses.
    """

    pairs: int
    accuracy: float | None
    expected_accuracy: float | None
    mean_gap: float | None
    tokens: int | None


@dataclass(frozen=True)
class SplitPreview:
    """What a split gives. threshold: γ, in reward units."""

    threshold: float
    easy: PartSummary
    difficult: PartSummary
    dropped: PartSummary

    def to_json(self) -> dict[str, object]:
        """The numbers by name."""
        return asdict(self)


def resolve_threshold(gaps: Floats, config: SplitStage) -> float:
    """γ, in reward units: as given, or NumPy's linear quantile of the gaps (or their sizes).

    gaps: (n,). Raises EmptySplit where there is no pair.
    """
    if len(gaps) == 0:
        raise EmptySplit("No pair was scored, so there is nothing to split.", pairs=0)
    if config.threshold is not None:
        return config.threshold
    share = config.quantile
    if share is None:
        assert config.easy_fraction is not None
        share = 1 - config.easy_fraction
    return float(np.quantile(gaps if config.sign == "signed" else np.abs(gaps), share))


def cut_gaps(gaps: Floats, config: SplitStage) -> tuple[float, list[Cut]]:
    """The threshold, and the runs that it cuts the gaps into: together they are 0 to n, each place once.

    gaps: (n,), rising. Raises EmptySplit where there is no pair.
    """
    threshold, pairs = resolve_threshold(gaps, config), len(gaps)
    if config.sign == "absolute":
        low = int(np.searchsorted(gaps, -threshold, "right")) if threshold > 0 else 0
        high = int(np.searchsorted(gaps, threshold, "left")) if threshold > 0 else 0
        return threshold, [
            Cut("easy", "at_or_above_threshold", 0, low),
            Cut("difficult", "below_threshold", low, high),
            Cut("easy", "at_or_above_threshold", high, pairs),
        ]
    easy_from = int(np.searchsorted(gaps, threshold, "left"))
    contradicting = min(
        int(np.searchsorted(gaps, -abs(threshold), "right")),
        int(np.searchsorted(gaps, 0.0, "left")),
        easy_from,
    )
    targets: Mapping[str, TargetPart] = {"difficult": "difficult", "drop": "dropped"}
    return threshold, [
        Cut(targets.get(config.negative, "easy"), f"negative_{config.negative}", 0, contradicting),
        Cut("difficult", "below_threshold", contradicting, easy_from),
        Cut("easy", "at_or_above_threshold", easy_from, pairs),
    ]


def preview_split(index: GapIndex, config: SplitStage) -> SplitPreview:
    """What `split_by_gap` would give, without doing it; raises EmptySplit where there is no pair."""
    gaps = index.parts["all"]
    threshold, cuts = cut_gaps(gaps.gaps, config)
    by_part = {part: [cut for cut in cuts if cut.part == part] for part in TARGETS}
    return SplitPreview(threshold, **{part: _summarize(gaps, by_part[part]) for part in TARGETS})


def _summarize(index: SortedGaps, cuts: list[Cut]) -> PartSummary:
    negative = int(np.searchsorted(index.gaps, 0.0, "left"))
    not_positive = int(np.searchsorted(index.gaps, 0.0, "right"))
    pairs, wins, gap, expected, tokens = 0, 0.0, 0.0, 0.0, 0
    for cut in cuts:
        here = range(cut.start, cut.stop)
        pairs += len(here)
        below, at_most = (min(max(cut.start, place), cut.stop) for place in (negative, not_positive))
        flipped = cut.why == "negative_flip"
        wins += (at_most - below) / 2 + (below - cut.start if flipped else cut.stop - at_most)
        gap += float(index.gap_sums[cut.stop] - index.gap_sums[cut.start]) * (-1 if flipped else 1)
        expected += float(index.expected_sums[cut.stop] - index.expected_sums[cut.start])
        if index.token_sums is not None:
            tokens += int(index.token_sums[cut.stop] - index.token_sums[cut.start])
    if pairs == 0:
        return PartSummary(0, None, None, None, None if index.token_sums is None else 0)
    known_tokens = None if index.token_sums is None else tokens
    return PartSummary(pairs, wins / pairs, expected / pairs, gap / pairs, known_tokens)
