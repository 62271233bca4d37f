"""Whether the folds' reward models agree: the rewards of all of them share one threshold."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mpo.hold_out import GroupKey, group_key
from mpo.intervals import wilson_interval
from mpo.records import PreferencePair
from mpo.reward_model.report import ScoredPairs

LARGEST_RATIO = 1.5
"""Folds whose accuracies or gap deviations differ by more than this factor are warned about."""


def prompt_groups(pairs: Iterable[PreferencePair]) -> list[int]:
    """The prompt group of each pair: its number from the hold-out; where one has none, all are numbered by
    their first rows. Holds no pair while it goes through them."""
    numbers: dict[GroupKey, int] = {}
    given, numbered = list[int](), list[int]()
    for pair in pairs:
        numbered.append(numbers.setdefault(group_key(pair.prompt), len(numbers)))
        if pair.group is not None:
            given.append(pair.group)
    return given if len(given) == len(numbered) else numbered


@dataclass(frozen=True)
class FoldReport:
    """Accuracy and gap deviation (ddof 0) of the pairs that one fold's model scored; fold: None where one
    model scored all."""

    fold: int | None
    pairs: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    gap_std: float

    def to_json(self) -> dict[str, object]:
        """The report by name."""
        return asdict(self)


def fold_reports(scored: ScoredPairs, folds: Sequence[int | None]) -> list[FoldReport]:
    """A report a fold, in order. folds: of each pair."""
    reports = []
    for fold in sorted(set(folds), key=lambda fold: fold or 0):
        part = scored.take(np.array([row for row, its in enumerate(folds) if its == fold]))
        correct = part.correct()
        interval = wilson_interval(float(correct.sum()), len(correct))
        reports.append(
            FoldReport(fold, len(correct), float(correct.mean()), interval, float(part.gaps.std()))
        )
    return reports


def differing_folds(reports: Sequence[FoldReport]) -> list[str]:
    """A warning for each of accuracy and gap deviation in which the folds differ too much."""
    warnings = []
    for name, label in (("accuracy", "accuracies"), ("gap_std", "standard deviations of the gap")):
        values = [float(getattr(report, name)) for report in reports]
        if max(values) > LARGEST_RATIO * min(values):
            listed = ", ".join(f"{value:.3g}" for value in values)
            warnings.append(
                f"The folds' {label} differ by more than a factor of {LARGEST_RATIO}: {listed}. "
                "One threshold means something else in each of them."
            )
    return warnings
