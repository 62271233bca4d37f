import numpy as np
import pytest

from mpo.records import Message, PreferencePair
from mpo.reward_model.folds import differing_folds, fold_reports, prompt_groups
from mpo.reward_model.report import ScoredPairs


def reports_of(first: list[float], second: list[float]) -> list[str]:
    gaps = np.array(first + second)
    scored = ScoredPairs(gaps, np.ones(len(gaps)), np.ones(len(gaps)))
    return differing_folds(fold_reports(scored, [1] * len(first) + [2] * len(second)))


def test_each_fold_is_reported_by_its_own_pairs() -> None:
    gaps = np.array([1.0, -1.0, 3.0, 0.0])
    first, second = fold_reports(ScoredPairs(gaps, np.ones(4), np.ones(4)), [2, 1, 2, 1])
    assert (first.fold, first.pairs, first.accuracy, first.gap_std) == (1, 2, 0.25, 0.5)
    assert (second.fold, second.pairs, second.accuracy, second.gap_std) == (2, 2, 1.0, 1.0)


def test_alike_folds_give_no_warning() -> None:
    assert reports_of([1.0, -1.0, 2.0, 1.0], [1.2, -1.0, 2.0, 1.0]) == []


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ([1.0, 1.0, -1.0, -1.0], [2.0, 2.0, -2.0, -2.0], "standard deviations"),
        ([1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0], "accuracies"),
    ],
)
def test_a_scale_or_an_accuracy_of_its_own_is_warned_about(
    first: list[float], second: list[float], named: str
) -> None:
    (warning,) = reports_of(first, second)
    assert named in warning


def test_one_model_without_a_fold_is_reported_as_one() -> None:
    gaps = np.array([1.0, -1.0, 3.0, 0.0])
    (report,) = fold_reports(ScoredPairs(gaps, np.ones(4), np.ones(4)), [None] * 4)
    assert (report.fold, report.pairs, report.accuracy) == (None, 4, 0.625)


def pair(prompt: str | list[Message], group: int | None = None) -> PreferencePair:
    return PreferencePair("0", prompt, "a", "b", group=group)


def test_prompt_groups_are_the_hold_outs_where_all_pairs_have_one() -> None:
    assert prompt_groups([pair("x", 7), pair("x", 3), pair("y", 7)]) == [7, 3, 7]


def test_prompt_groups_come_from_the_prompts_where_a_pair_has_none() -> None:
    opening = Message(role="user", content="hello")
    deeper = [opening, Message(role="assistant", content="hi"), Message(role="user", content="again")]
    pairs = [pair("x", 7), pair([opening]), pair("x"), pair(deeper), pair("y")]
    assert prompt_groups(pairs) == [0, 1, 0, 1, 2]
