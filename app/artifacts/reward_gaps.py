"""The reward gaps of a job: their histogram, and what another split would give."""

from collections.abc import Mapping

import numpy as np

from app.artifacts.queries import GapQuery
from app.artifacts.schemas import PartView, RewardGaps, SplitPreviewView
from app.artifacts.scored_job import ScoredJob
from core.errors import Unprocessable
from mpo.config import SplitStage
from mpo.gap_cuts import Cut, SplitPreview, cut_gaps, preview_split
from mpo.gap_index import Floats, GapIndex, SortedGaps
from mpo.parts import TARGETS, Part, TargetPart
from mpo.reward_gaps import reward_gap_histogram


def read_reward_gaps(scored: ScoredJob, query: GapQuery) -> RewardGaps:
    """The histogram, exact at any number of bins; raises Unprocessable where lower is not below upper."""
    if query.lower is not None and query.upper is not None and query.lower >= query.upper:
        raise Unprocessable("lower should be below upper", loc=("query", "lower"))
    index, preview = scored.index(), preview_split(scored.index(), scored.split)
    if query.part not in index.parts:
        index = _with_parts(index, scored.split)
    histogram = reward_gap_histogram(
        index,
        bins=query.bins,
        lower=query.lower,
        upper=query.upper,
        part=query.part,
        sign=scored.split.sign,
    )
    return RewardGaps(
        job=scored.job.id,
        reward_model=scored.reward_model,
        part=query.part,
        **histogram.to_json(),
        threshold=preview.threshold,
        scored_by=scored.scored_by,
        **_sizes(preview, query.part),
    )


def preview(scored: ScoredJob, split: SplitStage) -> SplitPreviewView:
    """What this split would give, without running it."""
    found = preview_split(scored.index(), split)
    parts = {part: PartView.model_validate(getattr(found, part)) for part in TARGETS}
    return SplitPreviewView(threshold=found.threshold, **parts)


def preview_config(
    scored: ScoredJob, *, threshold: float | None, quantile: float | None, easy_fraction: float | None
) -> SplitStage:
    """The job's split with another way to the threshold; its own where none is given."""
    ways = {"threshold": threshold, "quantile": quantile, "easy_fraction": easy_fraction}
    given = {name: value for name, value in ways.items() if value is not None}
    if len(given) > 1:
        names = list(given)
        raise Unprocessable(f"{' and '.join(names)} exclude each other: give one", loc=("query", names[1]))
    if not given:
        return scored.split
    return SplitStage.model_validate({"sign": scored.split.sign, "negative": scored.split.negative, **given})


def bin_parts(scored: ScoredJob, gaps: RewardGaps) -> Mapping[TargetPart, list[int]]:
    """Counts by part in the histogram's bins; as scored: an exchanged pair counts where its gap was."""
    values = np.asarray(scored.index().parts["all"].gaps)
    counts = {part: np.zeros(len(gaps.counts), np.int64) for part in TARGETS}
    for cut in cut_gaps(values, scored.split)[1]:
        if gaps.part in ("all", cut.part):
            here = _shown(values, cut, gaps)
            counts[cut.part] += np.histogram(here, gaps.bin_edges)[0]
    return {part: [int(count) for count in counted] for part, counted in counts.items()}


def _shown(values: Floats, cut: Cut, gaps: RewardGaps) -> Floats:
    here = values[cut.start : cut.stop]
    if gaps.sign == "absolute":
        return np.abs(here)
    return -here if gaps.part != "all" and cut.why == "negative_flip" else here


def _sizes(found: SplitPreview, shown: Part) -> dict[str, int]:
    """Pairs by part, of the pairs that are shown."""
    return {part: getattr(found, part).pairs if shown in ("all", part) else 0 for part in TARGETS}


def _with_parts(index: GapIndex, split: SplitStage) -> GapIndex:
    """The index of a split that has not run: its rows count nowhere, its gaps are those that it will have."""
    values = np.asarray(index.parts["all"].gaps)
    found: dict[Part, list[Floats]] = {part: [np.zeros(0)] for part in TARGETS}
    for cut in cut_gaps(values, split)[1]:
        sign = -1.0 if cut.why == "negative_flip" else 1.0
        found[cut.part].append(sign * values[cut.start : cut.stop])
    parts = {part: SortedGaps.of(np.concatenate(runs), index.temperature) for part, runs in found.items()}
    return GapIndex({**index.parts, **parts}, index.temperature)
