"""Win rates against counts by hand."""

import pytest

from workers.win_rates import win_rates


def test_the_higher_mean_wins_and_equal_means_tie() -> None:
    scores = [
        [[1.0, 3.0], [1.0, 1.0]],
        [[0.0, 0.0], [0.5, -0.5]],
        [[0.0, 0.0], [1.0, 0.0]],
        [[2.0, 2.0], [1.0, 1.0]],
    ]
    (rate,) = win_rates(["a", "b"], scores, {"b"})
    assert (rate["wins"], rate["losses"], rate["ties"], rate["n"]) == (2, 1, 1, 4)
    assert rate["win_rate"] == 0.625
    assert rate["ci95"] == pytest.approx([0.2194, 0.9081], abs=1e-4)
    assert rate["in_training"] is True


def test_each_pair_of_models_is_compared_once() -> None:
    rates = win_rates(["a", "b", "c"], [[[1.0], [2.0], [3.0]]], {"c"})
    assert [(r["model_a"], r["model_b"], r["losses"], r["in_training"]) for r in rates] == [
        ("a", "b", 1, False),
        ("a", "c", 1, True),
        ("b", "c", 1, True),
    ]


def test_what_could_not_be_scored_does_not_count() -> None:
    (rate,) = win_rates(["a", "b"], [[[None], [2.0]]], set())
    assert (rate["n"], rate["win_rate"], rate["ci95"]) == (0, None, [0.0, 1.0])
