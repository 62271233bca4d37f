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
    (rate,) = win_rates(["a", "b"], scores, [[4.0, 4.0]] * 4, {"b"})
    assert (rate["wins"], rate["losses"], rate["ties"], rate["n"]) == (2, 1, 1, 4)
    assert rate["win_rate"] == 0.625
    assert rate["ci95"] == pytest.approx([0.2194, 0.9081], abs=1e-4)
    assert rate["in_training"] is True


def test_each_pair_of_models_is_compared_once() -> None:
    rates = win_rates(["a", "b", "c"], [[[1.0], [2.0], [3.0]]], [[4.0] * 3], {"c"})
    assert [(r["model_a"], r["model_b"], r["losses"], r["in_training"]) for r in rates] == [
        ("a", "b", 1, False),
        ("a", "c", 1, True),
        ("b", "c", 1, True),
    ]


def test_what_could_not_be_scored_does_not_count() -> None:
    (rate,) = win_rates(["a", "b"], [[[None], [2.0]]], [[4.0, 4.0]], set())
    assert (rate["n"], rate["win_rate"], rate["ci95"]) == (0, None, [0.0, 1.0])


def test_a_scorer_that_likes_length_is_seen_through() -> None:
    """b's responses are longer, and score by their length alone."""
    lengths = [(10.0 + i % 7, 12.0 + (3 * i) % 7) for i in range(200)]
    (rate,) = win_rates(["a", "b"], [[[a], [b]] for a, b in lengths], [list(pair) for pair in lengths], set())
    assert rate["win_rate"] < 0.35
    assert rate["significant"]
    assert rate["length_controlled"] == pytest.approx(0.5, abs=0.1)


def test_many_pairs_make_each_of_them_less_sure() -> None:
    """32 of 50 is a win by itself; among six pairs it is none."""
    a, b = [[1.0]] * 32 + [[0.0]] * 18, [[0.5]] * 50
    (alone,) = win_rates(["a", "b"], list(map(list, zip(a, b, strict=True))), [[4.0] * 2] * 50, set())
    same = [[0.5]] * 50
    rows = list(map(list, zip(a, b, same, same, strict=True)))
    among = win_rates(["a", "b", "c", "d"], rows, [[4.0] * 4] * 50, set())
    assert alone["significant"]
    assert alone["p_value"] == pytest.approx(0.0477, abs=1e-4)
    assert [rate["win_rate"] for rate in among][:3] == [0.64] * 3
    assert not any(rate["significant"] for rate in among)
