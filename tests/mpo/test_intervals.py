import numpy as np
import pytest

from mpo.intervals import bootstrap_interval, wilson_interval


def test_wilson_interval_equals_numbers_worked_by_hand() -> None:
    # z = 1.959964, n = 10, p = 0.8: centre (0.8 + 0.192073) / 1.384146, half width 0.226700.
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    # Brown, Cai, DasGupta 2001: symmetric about 1/2 where p is.
    assert wilson_interval(50, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)


def test_wilson_interval_ends_at_the_edges_exactly() -> None:
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
    assert wilson_interval(0, 20)[1] == pytest.approx(0.1611252, abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_counts_ties_as_halves() -> None:
    below, between, above = (wilson_interval(k, 9) for k in (4, 4.5, 5))
    assert below < between < above
    assert between[0] + between[1] == pytest.approx(1)


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=400)
    lower, upper = bootstrap_interval(values, seed=5)
    half = 1.96 * values.std() / 20
    assert lower == pytest.approx(values.mean() - half, abs=0.03)
    assert upper == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_interval_depends_on_nothing_but_values_and_seed() -> None:
    values = [0.0, 1.0, 0.5, 1.0, 0.0, 1.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(np.array(values) ** 2 * 7, seed=3)


def test_bootstrap_draws_the_numbers_of_one_unit_together() -> None:
    first = np.random.default_rng(0).random(50)
    paired = np.stack([first, first + 0.25], axis=1)
    difference = bootstrap_interval(paired, lambda s: (s[..., 1] - s[..., 0]).mean(axis=1))
    assert difference == pytest.approx((0.25, 0.25), abs=1e-12)


def test_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
