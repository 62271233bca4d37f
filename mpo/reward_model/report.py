"""How well rewards tell chosen from rejected: accuracy, calibration, and what length alone would do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpo.intervals import bootstrap_interval, wilson_interval
from mpo.ragged_pairs import lengths_of
from mpo.tokenization import EncodedPair

Floats = npt.NDArray[np.float64]

RELIABILITY_BINS = 10
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class ScoredPairs:
    """Gaps of pairs (chosen reward minus rejected) and their responses' lengths in tokens, each (n,)."""

    gaps: Floats
    chosen_tokens: Floats
    rejected_tokens: Floats

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], gaps: Sequence[float] | Floats) -> "ScoredPairs":
        """The gaps of encoded pairs, in the same order."""
        counted = lengths_of(pairs)
        chosen, rejected = counted.chosen.astype(np.float64), counted.rejected.astype(np.float64)
        return cls(np.asarray(gaps, dtype=np.float64), chosen, rejected)

    def take(self, rows: npt.NDArray[np.intp]) -> "ScoredPairs":
        """The pairs of these numbers."""
        return ScoredPairs(self.gaps[rows], self.chosen_tokens[rows], self.rejected_tokens[rows])

    def correct(self) -> Floats:
        """1 where chosen has the higher reward, ½ where they are equal, else 0: (n,)."""
        return wins(self.gaps)

    def longer(self) -> Floats:
        """1 where chosen is longer, ½ where they are equally long, else 0: (n,)."""
        return wins(self.chosen_tokens - self.rejected_tokens)


def wins(differences: Floats) -> Floats:
    """1 where positive, ½ where 0, 0 where negative."""
    return (np.sign(differences) + 1) / 2


def reliability(gaps: Floats) -> tuple[list[Mapping[str, float]], float]:
    """Reliability curve by confidence σ(|gap|), in `RELIABILITY_BINS` equal bins from ½ to 1, and the
    expected calibration error: Σ n_b/n · |accuracy_b - confidence_b|. Empty bins are left out.

    gaps: (n,), n > 0. Guo et al. 2017 (arXiv 1706.04599), eq. 3.
    """
    confidences = 1 / (1 + np.exp(-np.abs(gaps)))
    correct = wins(gaps)
    edges = np.linspace(0.5, 1.0, RELIABILITY_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidences, side="right") - 1, 0, RELIABILITY_BINS - 1)
    curve: list[Mapping[str, float]] = []
    error = 0.0
    for number in np.unique(bins):
        here = bins == number
        accuracy, confidence = float(correct[here].mean()), float(confidences[here].mean())
        curve.append({"confidence": confidence, "accuracy": accuracy, "pairs": int(here.sum())})
        error += float(here.mean()) * abs(accuracy - confidence)
    return curve, error


def accuracy_by_length(scored: ScoredPairs) -> list[Mapping[str, float]]:
    """Accuracy by tercile of chosen minus rejected tokens: rejected longer first. Empty ones are left out."""
    differences = scored.chosen_tokens - scored.rejected_tokens
    order = np.argsort(differences, kind="stable")
    return [
        {
            "tokens_from": float(differences[rows[0]]),
            "tokens_to": float(differences[rows[-1]]),
            "accuracy": float(scored.correct()[rows].mean()),
            "pairs": len(rows),
        }
        for rows in np.array_split(order, 3)
        if len(rows)
    ]


def accuracy_report(scored: ScoredPairs) -> dict[str, object]:
    """Accuracy with its Wilson interval (ties count half), the length-only baseline, and the gaps' spread."""
    correct = scored.correct()
    low, high = wilson_interval(float(correct.sum()), len(correct))
    return {
        "accuracy": float(correct.mean()),
        "accuracy_ci95": [low, high],
        "length_baseline": float(scored.longer().mean()),
        "gap_mean": float(scored.gaps.mean()),
        "gap_std": float(scored.gaps.std()),
        "share_within_one": float((np.abs(scored.gaps) <= 1).mean()),
    }


def calibration_report(scored: ScoredPairs) -> dict[str, object]:
    """Expected calibration error, reliability curve, and accuracy by length difference."""
    curve, error = reliability(scored.gaps)
    return {"ece": error, "reliability": curve, "accuracy_by_length": accuracy_by_length(scored)}


def is_weak(scored: ScoredPairs) -> bool:
    """Whether the rewards are no better than chance, or worse than response length alone.

    That is: Wilson's interval of the accuracy includes ½, or the paired bootstrap interval of accuracy minus
    max(length baseline, 1 - length baseline) lies wholly below 0; both at 95 %.
    """
    correct = scored.correct()
    low, high = wilson_interval(float(correct.sum()), len(correct))
    if low <= 0.5 <= high:
        return True
    units = np.stack([correct, scored.longer()], axis=1)
    _, best_case = bootstrap_interval(units, _gain_over_length, seed=BOOTSTRAP_SEED)
    return best_case < 0


def weak_reason(scored: ScoredPairs) -> str:
    """What a person who decides whether to go on needs to know, in one sentence."""
    correct = scored.correct()
    low, high = wilson_interval(float(correct.sum()), len(correct))
    longer = float(scored.longer().mean())
    return (
        "The reward models tell chosen from rejected no better than chance, or worse than length alone: "
        f"accuracy {correct.mean():.3f} [{low:.3f}, {high:.3f}] on {len(correct)} scored pairs, "
        f"response length alone {max(longer, 1 - longer):.3f}"
    )


def _gain_over_length(resamples: Floats) -> Floats:
    """(m, n, 2) of correct and longer -> (m,)."""
    accuracy, longer = np.moveaxis(resamples.mean(axis=1), -1, 0)
    gain: Floats = accuracy - np.maximum(longer, 1 - longer)
    return gain
