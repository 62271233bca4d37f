"""Who wins how often: each pair of compared models over the same prompts. Torch-free."""

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

from mpo.intervals import wilson_interval

Scored = list[float | None]
"""One model's scores on one prompt, one a response; None where a response could not be scored."""


def win_rates(
    models: Sequence[str], scores: Sequence[Sequence[Scored]], trained_by_scorer: Collection[str]
) -> list[dict[str, Any]]:
    """For each pair of models, how often the first has the higher mean score; equal ones are ties.

    scores: a prompt a row, in it each model's. A tie counts as half a win; ci95 is Wilson's.
    """
    means = [[_mean(of_model) for of_model in row] for row in scores]
    return [
        _of_pair(models[a], models[b], [(row[a], row[b]) for row in means])
        | {"in_training": models[a] in trained_by_scorer or models[b] in trained_by_scorer}
        for a, b in combinations(range(len(models)), 2)
    ]


def _of_pair(
    model_a: str, model_b: str, means: Sequence[tuple[float | None, float | None]]
) -> dict[str, Any]:
    known = [(a, b) for a, b in means if a is not None and b is not None]
    wins, losses = sum(a > b for a, b in known), sum(a < b for a, b in known)
    n, ties = len(known), len(known) - wins - losses
    return {
        "model_a": model_a,
        "model_b": model_b,
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "win_rate": (wins + ties / 2) / n if n else None,
        "ci95": list(wilson_interval(wins + ties / 2, n)),
        "length_controlled": None,
        "n": n,
    }


def _mean(scores: Scored) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None
