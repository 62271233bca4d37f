"""Confidence intervals: Wilson's for rates, the bootstrap for whatever else. Torch-free."""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS_AT_ONCE = 2**22
"""Draws held in memory at a time, so that many values need no more of it than few."""


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate (Wilson 1927, the score interval); (0, 1) where nothing was observed.

    successes: 0 to n, ties counted as halves. With z the normal quantile and p = successes / n:
    (p + z²/2n ± z·sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n).
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the ends are exactly 0 and 1; rounding must not carry them past.
    lower = 0.0 if successes == 0 else (centre - half) / scale
    upper = 1.0 if successes == n else (centre + half) / scale
    return lower, upper


def rate_p_value(successes: float, n: int) -> float:
    """Two-sided p-value of a rate of one half by the score test, whose interval is Wilson's: below 0.05 where
    that excludes ½. 1 where nothing was observed. successes: ties counted as halves.
    """
    if n == 0:
        return 1.0
    z = abs(successes - n / 2) / sqrt(n / 4)
    return min(1.0, 2 * NormalDist().cdf(-z))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance of any false one below α is at most α."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def mean(samples: Floats) -> Floats:
    """Mean of each resample. samples: (resamples, n)."""
    result: Floats = samples.mean(axis=1)
    return result


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[[Floats], Floats] = mean,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (Efron 1979).

    values: (n,), or (n, k) where k numbers belong to one unit and are drawn together. statistic: resamples of
    shape (m, n) or (m, n, k) -> (m,). Raises ValueError where values is empty.
    """
    units = np.asarray(values, dtype=np.float64)
    if len(units) == 0:
        raise ValueError("a bootstrap needs at least one value")
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // len(units))
    found = [
        statistic(units[generator.integers(len(units), size=(min(at_once, resamples - start), len(units)))])
        for start in range(0, resamples, at_once)
    ]
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(lower), float(upper)
