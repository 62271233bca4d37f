"""The numbers of an evaluation: by model, by pair of models, and by decile of the reward gap. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum

import numpy as np

from mpo.intervals import bootstrap_interval, wilson_interval
from mpo.win_rates import win_rate

DECILES = 10
FEWEST_IN_GROUP = 5
"""Prompts a group by gap holds at least; where there are fewer, it is one group of all."""


@dataclass(frozen=True)
class ModelNumbers:
    """What one model's responses came to: a number a prompt, the mean over its samples, in order.

    rewards: by the judge. training_rewards: by the reward model of the training, where there is one. tokens:
    of a response. kl: by the base's name, in nats a response. eos_rate, diversity: over all responses.
    """

    name: str
    rewards: Sequence[float]
    training_rewards: Sequence[float] | None
    tokens: Sequence[float]
    kl: Mapping[str, Sequence[float]]
    eos_rate: float
    diversity: Mapping[str, float | None]

    def to_json(self, seed: int) -> dict[str, object]:
        """Means over the prompts, with bootstrap intervals over prompts."""
        known = self.training_rewards
        return {
            "model": self.name,
            "reward": mean_report(self.rewards, seed),
            "training_reward": None if known is None else mean_report(known, seed),
            "response_tokens": mean_report(self.tokens, seed),
            "eos_rate": self.eos_rate,
            "diversity": dict(self.diversity),
            "kl": {base: mean_report(values, seed) for base, values in self.kl.items()},
        }

    def of_prompts(self, rows: Sequence[int], seed: int) -> dict[str, object]:
        """Reward and KL over some of the prompts."""
        return {
            "model": self.name,
            "reward": mean_report(take(self.rewards, rows), seed),
            "kl": {base: mean_report(take(values, rows), seed) for base, values in self.kl.items()},
        }


def prompt_means(values: Sequence[float], samples: int) -> list[float]:
    """Means over each `samples` values in a row: of one prompt each.

    The same values in another order give the same mean, to the last bit: equal responses must tie.
    """
    return [fsum(values[i : i + samples]) / samples for i in range(0, len(values), samples)]


def mean_report(values: Sequence[float], seed: int) -> dict[str, object]:
    """The mean of numbers that are one a prompt, with a bootstrap interval over prompts."""
    return {"mean": fsum(values) / len(values), "ci95": list(bootstrap_interval(values, seed=seed))}


def accuracy_numbers(gaps: Sequence[float]) -> dict[str, object]:
    """Share of gaps above 0, ties half, with Wilson's interval; gaps: one a pair, at least one."""
    correct = float((np.sign(gaps) + 1).sum() / 2)
    return {
        "accuracy": correct / len(gaps),
        "accuracy_ci95": list(wilson_interval(correct, len(gaps))),
        "pairs": len(gaps),
    }


def compare_models(
    models: Sequence[ModelNumbers], rows: Sequence[int] | None = None
) -> list[dict[str, object]]:
    """Win rates of each two models, the later one against the earlier; over all prompts, or these rows."""
    over = range(len(models[0].rewards)) if rows is None else rows
    return [
        win_rate(
            b.name,
            a.name,
            (take(b.rewards, over), take(a.rewards, over)),
            (take(b.tokens, over), take(a.tokens, over)),
        ).to_json()
        for a, b in combinations(models, 2)
    ]


def rank_groups(gaps: Sequence[float]) -> list[list[int]]:
    """Rows by rising gap in groups of nearly equal size, ten where each then holds `FEWEST_IN_GROUP` rows.

    gaps: (n,), n > 0. Equal gaps keep their order. No group is empty.
    """
    groups = max(1, min(DECILES, len(gaps) // FEWEST_IN_GROUP))
    order = np.argsort(np.asarray(gaps, dtype=np.float64), kind="stable")
    return [[int(row) for row in group] for group in np.array_split(order, groups)]


def reports_by_gap(
    models: Sequence[ModelNumbers], gaps: Sequence[float], seed: int
) -> list[dict[str, object]]:
    """Win rates, reward and KL by group of prompts, the smallest gaps first.

    gaps: a prompt's mean |gap| over its held-out pairs, in reward units.
    """
    return [
        {
            "n": len(rows),
            "gap": [gaps[rows[0]], gaps[rows[-1]]],
            "win_rates": compare_models(models, rows),
            "models": [model.of_prompts(rows, seed) for model in models],
        }
        for rows in rank_groups(gaps)
    ]


def take(values: Sequence[float], rows: Sequence[int]) -> list[float]:
    """The values of these rows."""
    return [values[row] for row in rows]
