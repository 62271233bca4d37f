"""How often one model's response scores above another's to the same prompt. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpo.intervals import wilson_interval

Floats = npt.NDArray[np.float64]

FEWEST_PROMPTS = 10
"""Below this many prompts the length-controlled rate is not estimated."""

MOST_STEPS = 100
"""Newton steps of a fit: far more than it needs."""

SMALLEST_STEP = 1e-9
"""A fit ends where its weights change by less."""


@dataclass(frozen=True)
class WinRate:
    """Model a against model b over n prompts; a tie is half a win.

    ci95: Wilson's interval. length_controlled: what win_rate would be if both responses were equally long,
    None where that cannot be told. A rate whose interval includes ½ is no win, and not significant.
    """

    model_a: str
    model_b: str
    wins: int
    losses: int
    ties: int
    win_rate: float
    ci95: tuple[float, float]
    length_controlled: float | None

    @property
    def n(self) -> int:
        """Prompts compared."""
        return self.wins + self.losses + self.ties

    @property
    def significant(self) -> bool:
        """Whether the interval excludes ½."""
        return not self.ci95[0] <= 0.5 <= self.ci95[1]

    def to_json(self) -> dict[str, object]:
        """The rate as JSON values."""
        return {
            "model_a": self.model_a,
            "model_b": self.model_b,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "win_rate": self.win_rate,
            "ci95": list(self.ci95),
            "length_controlled": self.length_controlled,
            "n": self.n,
            "significant": self.significant,
        }


def win_rate(
    model_a: str,
    model_b: str,
    scores: tuple[Sequence[float], Sequence[float]],
    tokens: tuple[Sequence[float], Sequence[float]],
) -> WinRate:
    """Compares two models prompt by prompt: the higher score wins, equal scores tie.

    scores, tokens: of a's and of b's responses (means over samples, where there are several), in the order of
    the prompts. Raises ValueError where there is no prompt.
    """
    difference = np.asarray(scores[0], dtype=np.float64) - np.asarray(scores[1], dtype=np.float64)
    if len(difference) == 0:
        raise ValueError("a win rate needs at least one prompt")
    outcomes = (np.sign(difference) + 1) / 2
    longer = np.asarray(tokens[0], dtype=np.float64) - np.asarray(tokens[1], dtype=np.float64)
    return WinRate(
        model_a,
        model_b,
        wins=int((difference > 0).sum()),
        losses=int((difference < 0).sum()),
        ties=int((difference == 0).sum()),
        win_rate=float(outcomes.mean()),
        ci95=wilson_interval(float(outcomes.sum()), len(outcomes)),
        length_controlled=length_controlled_rate(outcomes, longer),
    )


def length_controlled_rate(outcomes: Floats, longer: Floats) -> float | None:
    """The win rate at no difference in length, by logistic regression on tanh of the scaled difference.

    outcomes: (n,), 0, ½ or 1; longer: (n,), tokens of a less those of b; scaled by its root mean square.
    After Dubois et al. 2024 (arXiv 2404.04475), without their term for the prompt; fitted with Jeffreys'
    prior (Firth 1993, Biometrika 80), which keeps it finite where length tells wins from losses without
    error, and its bias small where prompts are few. None for few prompts, where all outcomes agree, or where
    one model's responses are longer throughout: equal lengths would then be extrapolated to.
    """
    if len(outcomes) < FEWEST_PROMPTS or float(np.ptp(outcomes)) == 0:
        return None
    if not longer.any():
        return float(outcomes.mean())
    if longer.min() > 0 or longer.max() < 0:
        return None
    scaled = np.tanh(longer / np.sqrt(np.square(longer).mean()))
    weights = _fit_logistic(np.stack([np.ones_like(scaled), scaled], axis=1), outcomes)
    return float(_sigmoid(weights)[0])


def _fit_logistic(features: Floats, outcomes: Floats) -> Floats:
    """Weights (k,) of a logistic regression of outcomes (n,) on features (n, k), the maximum of
    Σ [y log p + (1 - y) log(1 - p)] + ½ log |XᵀWX|, W = diag p(1 - p): Firth's penalized likelihood."""
    weights: Floats = np.zeros(features.shape[1])
    reached = _penalized_likelihood(weights, features, outcomes)
    for _ in range(MOST_STEPS):
        rates = _sigmoid(features @ weights)
        spread = rates * (1 - rates)
        covariance = np.linalg.inv((features * spread[:, None]).T @ features)
        leverage = spread * np.einsum("nj,jk,nk->n", features, covariance, features)
        step = covariance @ (features.T @ (outcomes - rates + leverage * (0.5 - rates)))
        # Far from the maximum a whole Newton step may lead away from it.
        while (found := _penalized_likelihood(weights + step, features, outcomes)) < reached:
            step = step / 2
            if float(np.abs(step).max()) < SMALLEST_STEP:
                return weights
        weights, reached = weights + step, found
        if float(np.abs(step).max()) < SMALLEST_STEP:
            break
    return weights


def _sigmoid(logits: Floats) -> Floats:
    rates: Floats = 0.5 * (1 + np.tanh(logits / 2))
    return rates


def _penalized_likelihood(weights: Floats, features: Floats, outcomes: Floats) -> float:
    logits = features @ weights
    rates = _sigmoid(logits)
    _, logdet = np.linalg.slogdet((features * (rates * (1 - rates))[:, None]).T @ features)
    return float((outcomes * logits - np.logaddexp(0, logits)).sum() + logdet / 2)
