"""How often one model's response scores above another's to the same prompt. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpo.intervals import wilson_interval

Floats = npt.NDArray[np.float64]

FEWEST_PROMPTS = 10
"""Below this many prompts the length-controlled rate is not estimated."""

RIDGE = 1.0
"""Weight of the squared slope: keeps the fit finite where length tells wins from losses without error."""


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
    tokens: tuple[Sequence[int], Sequence[int]],
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

    outcomes: (n,), 0, ½ or 1; longer: (n,), tokens of a less those of b. After Dubois et al. 2024
    (arXiv 2404.04475), without their term for the prompt. None for few prompts, or where all outcomes agree.
    """
    if len(outcomes) < FEWEST_PROMPTS or float(np.ptp(outcomes)) == 0:
        return None
    spread = float(longer.std())
    if spread == 0:
        # Every pair differs by the same length (or by none): length explains nothing that can be taken off.
        return float(outcomes.mean()) if not longer.any() else None
    features = np.stack([np.ones_like(longer), np.tanh(longer / spread)], axis=1)
    penalty = np.diag([0.0, RIDGE])
    weights = np.zeros(2)
    for _ in range(50):
        rates = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (rates - outcomes) + penalty @ weights
        curvature = (features * (rates * (1 - rates))[:, None]).T @ features + penalty
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        weights = weights - np.clip(step, -2, 2)
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(1 / (1 + np.exp(-weights[0])))
