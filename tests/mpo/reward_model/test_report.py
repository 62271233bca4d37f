import numpy as np
import pytest

from mpo.reward_model.report import (
    ScoredPairs,
    accuracy_by_length,
    accuracy_report,
    calibration_report,
    is_weak,
    reliability,
)


def scored(gaps: list[float], longer: list[float] | None = None) -> ScoredPairs:
    """Pairs with these gaps; longer: how much longer chosen is."""
    differences = np.array(longer if longer is not None else [0.0] * len(gaps))
    return ScoredPairs(np.array(gaps), 20 + differences, np.full(len(gaps), 20.0))


def test_ties_count_half() -> None:
    report = accuracy_report(scored([1.0, 0.0, -2.0, 3.0], longer=[4, 0, -1, 0]))
    assert report["accuracy"] == 0.625
    assert report["length_baseline"] == 0.5
    assert report["share_within_one"] == 0.5
    assert report["gap_mean"] == 0.5
    assert report["gap_std"] == pytest.approx(np.sqrt(3.25))


def test_the_interval_is_wilsons() -> None:
    report = accuracy_report(scored([1.0] * 73 + [-1.0] * 27))
    assert report["accuracy_ci95"] == pytest.approx([0.6357, 0.8073], abs=1e-4)


def test_gaps_that_mean_what_they_say_have_no_calibration_error() -> None:
    three = float(np.log(3.0))  # σ(log 3) = 3/4
    curve, error = reliability(np.array([three, three, three, -three]))
    assert curve == [{"confidence": pytest.approx(0.75), "accuracy": 0.75, "pairs": 4}]
    assert error == pytest.approx(0.0, abs=1e-12)


def test_calibration_error_weighs_bins_by_their_pairs() -> None:
    # Three sure and wrong (1 - 0 apart), one at confidence ½ and a tie (0 apart).
    _, error = reliability(np.array([-50.0, -50.0, -50.0, 0.0]))
    assert error == pytest.approx(0.75)


def test_accuracy_by_tercile_of_length_difference() -> None:
    parts = accuracy_by_length(scored([-1, -1, 1, -1, 1, 1], longer=[-9, -8, 0, 0, 7, 8]))
    assert [part["accuracy"] for part in parts] == [0.0, 0.5, 1.0]
    assert [(part["tokens_from"], part["tokens_to"]) for part in parts] == [(-9, -8), (0, 0), (7, 8)]


def test_a_single_pair_can_be_reported() -> None:
    assert calibration_report(scored([0.5]))["accuracy_by_length"] == [
        {"tokens_from": 0.0, "tokens_to": 0.0, "accuracy": 1.0, "pairs": 1}
    ]


def test_chance_is_weak() -> None:
    assert is_weak(scored([1.0] * 52 + [-1.0] * 48))


def test_clearly_better_than_chance_and_length_is_not_weak() -> None:
    assert not is_weak(scored([1.0] * 80 + [-1.0] * 20, longer=[1, -1] * 50))


def test_worse_than_length_is_weak_whichever_length_people_prefer() -> None:
    gaps = [1.0] * 70 + [-1.0] * 30
    for sign in (1, -1):
        assert is_weak(scored(gaps, longer=[sign] * 95 + [-sign] * 5))


def test_as_good_as_length_alone_is_not_weak() -> None:
    gaps = [1.0] * 70 + [-1.0] * 30
    assert not is_weak(scored(gaps, longer=gaps))


def test_clearly_wrong_is_weak() -> None:
    assert is_weak(scored([1.0] * 20 + [-1.0] * 80))
