"""Who wins how often: each pair of compared models over the same prompts. Torch-free."""

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mpo.intervals import holm, rate_p_value, wilson_interval
from mpo.win_rates import length_controlled_rate

Scored = list[float | None]
"""One model's scores on one prompt, one a response; None where a response could not be scored."""
SIGNIFICANT = 0.05


def win_rates(
    models: Sequence[str],
    scores: Sequence[Sequence[Scored]],
    tokens: Sequence[Sequence[float]],
    trained_by_scorer: Collection[str],
) -> list[dict[str, Any]]:
    """For each pair of models, how often the first has the higher mean score; equal ones are ties.

    scores, tokens: a prompt a row, in it each model's; tokens are means over its responses. A tie counts as
    half a win; ci95 is Wilson's; p_value that of a rate of one half, corrected by Holm over all pairs.
    """
    means = [[_mean(of_model) for of_model in row] for row in scores]
    rates = []
    for a, b in combinations(range(len(models)), 2):
        longer = [row[a] - row[b] for row in tokens]
        rate = _of_pair([(row[a], row[b]) for row in means], longer)
        in_training = models[a] in trained_by_scorer or models[b] in trained_by_scorer
        rates.append({"model_a": models[a], "model_b": models[b], **rate, "in_training": in_training})
    corrected = holm([rate["p_value"] for rate in rates])
    return [
        rate | {"p_value": p_value, "significant": p_value < SIGNIFICANT}
        for rate, p_value in zip(rates, corrected, strict=True)
    ]


def _of_pair(means: Sequence[tuple[float | None, float | None]], longer: Sequence[float]) -> dict[str, Any]:
    known = [(a, b, more) for (a, b), more in zip(means, longer, strict=True) if not (a is None or b is None)]
    outcomes = np.array([1.0 if a > b else 0.0 if a < b else 0.5 for a, b, _ in known])
    wins, losses, n = int((outcomes == 1).sum()), int((outcomes == 0).sum()), len(outcomes)
    points = float(outcomes.sum())
    return {
        "wins": wins,
        "losses": losses,
        "ties": n - wins - losses,
        "win_rate": points / n if n else None,
        "ci95": list(wilson_interval(points, n)),
        "length_controlled": length_controlled_rate(outcomes, np.array([more for *_, more in known])),
        "n": n,
        "p_value": rate_p_value(points, n),
    }


def _mean(scores: Scored) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None
