"""Which reward model scores a pair, and what its rewards are divided by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpo.config import ScoreStage
from mpo.errors import InvalidSpec, TooFewPrompts
from mpo.gap_index import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, Floats, fit_temperature
from mpo.hold_out import assign_folds
from mpo.reporter import Reporter

AT_A_BOUND = 1.01
"""A temperature within this factor of an end of its range is the range's, not the labels'."""

SCORED_HALF, HALVES = 1, 2
"""Of `held_out`: the fold that is scored, by the model trained without it; and how many folds there are."""


@dataclass(frozen=True)
class Scorers:
    """Who scores each pair. models: of each pair, the model's place from 0, None where none does; folds: of
    each pair, as scores.parquet names it, None where its model is no fold's."""

    models: Sequence[int | None]
    folds: Sequence[int | None]


def assign_scorers(groups: Sequence[int], config: ScoreStage, models: int) -> Scorers:
    """The scorers of pairs by the configuration's scheme. groups: the pairs' prompt groups; models: how many
    there are.

    Raises InvalidSpec where the scheme needs another number of them, TooFewPrompts where there are fewer
    groups than folds, or no pairs.
    """
    needed = config.folds if config.scheme == "cross_fit" else 1
    if models != needed:
        raise InvalidSpec(
            f"score.scheme {config.scheme} needs {needed} reward model(s), and there are {models}.",
            scheme=config.scheme,
            needed=needed,
            models=models,
        )
    if not groups:
        raise TooFewPrompts("There are no pairs to score.")
    no_fold = [None] * len(groups)
    if config.scheme == "in_sample":
        return Scorers([0] * len(groups), no_fold)
    if config.scheme == "held_out":
        halves = assign_folds(groups, HALVES)
        return Scorers([0 if half == SCORED_HALF else None for half in halves], no_fold)
    folds = assign_folds(groups, config.folds)
    return Scorers([fold - 1 for fold in folds], folds)


def fold_temperatures(gaps: Floats, folds: Sequence[int | None]) -> dict[int | None, float]:
    """The temperature of each fold that makes its gaps fit its labels. gaps, folds: of each scored pair."""
    return {
        fold: fit_temperature(gaps[np.array([its == fold for its in folds])])
        for fold in sorted(set(folds), key=lambda fold: fold or 0)
    }


def unfit_temperatures(temperatures: dict[int | None, float]) -> list[str]:
    """A warning for each fold whose labels do not fix a temperature."""
    named = {None: "The reward model"} | {
        fold: f"Fold {fold}'s reward model" for fold in temperatures if fold
    }
    warnings = []
    for fold, temperature in temperatures.items():
        if temperature < LOWEST_TEMPERATURE * AT_A_BOUND:
            fact = "ranks no pair against its label: the surest temperature is the likeliest"
        elif temperature > HIGHEST_TEMPERATURE / AT_A_BOUND:
            fact = "ranks no better than chance: the least sure temperature is the likeliest"
        else:
            continue
        warnings.append(
            f"{named[fold]} {fact}, and its rewards are divided by {temperature:.3g}. "
            "Such gaps are not comparable with other folds'; calibration none leaves them as they are."
        )
    return warnings


def calibrated(
    rewards: Floats, folds: Sequence[int | None], config: ScoreStage, reporter: Reporter
) -> tuple[Floats, dict[int | None, float]]:
    """The rewards as the configuration's calibration leaves them, and the temperature of each fold, 1 without
    one. rewards: (n, 2), chosen first; folds: of each pair."""
    if config.calibration == "none":
        return rewards, dict.fromkeys(folds, 1.0)
    temperatures = fold_temperatures(rewards[:, 0] - rewards[:, 1], folds)
    for warning in unfit_temperatures(temperatures):
        reporter.warn(warning)
    return rewards / np.array([temperatures[fold] for fold in folds])[:, None], temperatures
