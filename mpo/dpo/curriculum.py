"""Cuts the pairs by their gap into passes, easiest first."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mpo.batches import optimizer_steps
from mpo.config import DPOStage
from mpo.errors import InvalidScores
from mpo.records import PreferencePair


@dataclass(frozen=True)
class Pass:
    """A training of its own on some of the pairs. at_least, below: range of their gaps, None = no bound."""

    rows: Sequence[int]
    steps: int
    at_least: float | None = None
    below: float | None = None


def plan_passes(pairs: Iterable[PreferencePair], config: DPOStage, warn: Callable[[str], None]) -> list[Pass]:
    """The passes in order: one over all pairs, or those of `curriculum`, γ1 falling to γk.

    Their gaps g: g ≥ γ1, γ2 ≤ g < γ1, …, g < γk. max_steps bounds them together; a pass that it leaves no
    step is not among them. warn is told of bands without a pair. Raises InvalidScores where a curriculum
    finds a pair without a gap.
    """
    thresholds = config.curriculum
    bands = _bands(pairs, thresholds, warn) if thresholds else [(None, None, range(sum(1 for _ in pairs)))]
    passes: list[Pass] = []
    left = config.max_steps
    for at_least, below, rows in bands:
        steps = optimizer_steps(len(rows), config.batch_pairs, config.epochs, left)
        left = left - steps if left is not None else None
        if steps > 0:
            passes.append(Pass(rows, steps, at_least, below))
    return passes


Band = tuple[float | None, float | None, Sequence[int]]


def _bands(
    pairs: Iterable[PreferencePair], thresholds: Sequence[float], warn: Callable[[str], None]
) -> list[Band]:
    gaps = [_gap(pair) for pair in pairs]
    bands: list[Band] = []
    for below, at_least in pairwise([None, *thresholds, None]):
        low, high = -math.inf if at_least is None else at_least, math.inf if below is None else below
        if rows := [row for row, gap in enumerate(gaps) if low <= gap < high]:
            bands.append((at_least, below, rows))
        else:
            bounds = [f"from {low:g} on"] * (at_least is not None) + [f"below {high:g}"] * (below is not None)
            warn(f"No pair has a gap {' and '.join(bounds)}: the curriculum passes this band over.")
    return bands


def _gap(pair: PreferencePair) -> float:
    if pair.gap is None or not math.isfinite(pair.gap):
        raise InvalidScores(
            f"dpo.curriculum cuts the pairs by their reward gap, and pair {pair.id} has none. Train on what "
            "a split gives, or leave curriculum out.",
            pair=pair.id,
        )
    return pair.gap
