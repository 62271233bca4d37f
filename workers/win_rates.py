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
POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5, "disagreed": 0.5}


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
        pairs = [(row[a], row[b]) for row in means]
        outcomes = [None if x is None or y is None else _outcome(x, y) for x, y in pairs]
        rate = _of_pair(outcomes, [row[a] - row[b] for row in tokens])
        in_training = models[a] in trained_by_scorer or models[b] in trained_by_scorer
        rates.append({"model_a": models[a], "model_b": models[b], **rate, "in_training": in_training})
    return _corrected(rates)


def judged_win_rates(
    models: Sequence[str], outcomes: Sequence[Sequence[str]], tokens: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """As `win_rates`, by what a judge said of each pair of models.

    outcomes: by prompt, then pair in the order of `combinations`: `a`, `b`, `tie`, `disagreed` (a tie too),
    `unparsed` or `failed` (which do not count).
    """
    rates = []
    for place, (a, b) in enumerate(combinations(range(len(models)), 2)):
        said = [row[place] for row in outcomes]
        rate = _of_pair([POINTS.get(each) for each in said], [row[a] - row[b] for row in tokens])
        counted = {name: said.count(name) for name in ("disagreed", "unparsed", "failed")}
        rates.append({"model_a": models[a], "model_b": models[b], **rate, "in_training": False, **counted})
    return _corrected(rates)


def _corrected(rates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    corrected = holm([rate["p_value"] for rate in rates])
    return [
        rate | {"p_value": p_value, "significant": p_value < SIGNIFICANT}
        for rate, p_value in zip(rates, corrected, strict=True)
    ]


def _outcome(a: float, b: float) -> float:
    return 1.0 if a > b else 0.0 if a < b else 0.5


def _of_pair(points: Sequence[float | None], longer: Sequence[float]) -> dict[str, Any]:
    """points: by prompt, 1 where a won, 0 where b did, ½ for a tie; None where nobody can tell."""
    known = [(won, more) for won, more in zip(points, longer, strict=True) if won is not None]
    outcomes = np.array([won for won, _ in known])
    wins, losses, n = int((outcomes == 1).sum()), int((outcomes == 0).sum()), len(outcomes)
    total = float(outcomes.sum())
    return {
        "wins": wins,
        "losses": losses,
        "ties": n - wins - losses,
        "win_rate": total / n if n else None,
        "ci95": list(wilson_interval(total, n)),
        "length_controlled": length_controlled_rate(outcomes, np.array([more for _, more in known])),
        "n": n,
        "p_value": rate_p_value(total, n),
    }


def _mean(scores: Scored) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None
