import numpy as np
import pytest

from mpo.intervals import bootstrap_interval, holm, rate_p_value, wilson_interval


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


def coverage(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("rate", [0.5, 0.73, 0.95])
@pytest.mark.parametrize("n", [12, 64, 400])
def test_wilson_interval_covers_the_truth_about_as_often_as_it_says(rate: float, n: int) -> None:
    # Exact, not sampled: coverage is the binomial probability of the counts whose interval holds the rate.
    wins = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choices = log_factorial[n] - log_factorial - log_factorial[::-1]
    probability = np.exp(log_choices + wins * np.log(rate) + (n - wins) * np.log(1 - rate))
    low, high = np.array([wilson_interval(float(k), n) for k in wins]).T
    covered = float(probability[(low <= rate) & (rate <= high)].sum())
    assert probability.sum() == pytest.approx(1)
    assert 0.92 <= covered <= 0.985


def test_wilson_interval_of_sampled_rates_covers_the_truth() -> None:
    wins = np.random.default_rng(0).binomial(64, 0.6, 4000)
    low, high = np.array([wilson_interval(float(k), 64) for k in wins]).T
    # 4000 trials: a coverage of 95 % is seen with a standard deviation of 0.34 %.
    assert coverage(low, high, 0.6) == pytest.approx(0.95, abs=0.015)


def test_wilson_interval_of_ties_as_halves_covers_at_least_as_often() -> None:
    # A tie is less spread than a win or a loss of the same mean, so the interval errs on the safe side.
    generator = np.random.default_rng(1)
    outcomes = generator.choice([0.0, 0.5, 1.0], p=[0.2, 0.4, 0.4], size=(3000, 64))
    low, high = np.array([wilson_interval(float(total), 64) for total in outcomes.sum(axis=1)]).T
    assert 0.95 <= coverage(low, high, 0.6) <= 1.0


@pytest.mark.parametrize(("n", "least"), [(20, 0.90), (64, 0.92)])
def test_bootstrap_interval_of_a_mean_covers_the_truth(n: int, least: float) -> None:
    generator = np.random.default_rng(n)
    trials = 600
    found = [
        bootstrap_interval(generator.normal(2, 3, n), seed=trial, resamples=400) for trial in range(trials)
    ]
    low, high = np.array(found).T
    # The percentile interval of few values is known to be a little narrow, never by this much.
    assert least <= coverage(low, high, 2) <= 0.97


def test_bootstrap_interval_of_a_skewed_mean_covers_the_truth() -> None:
    generator = np.random.default_rng(2)
    found = [bootstrap_interval(generator.exponential(4, 80), seed=n, resamples=400) for n in range(600)]
    low, high = np.array(found).T
    assert 0.90 <= coverage(low, high, 4) <= 0.97


def test_bootstrap_over_prompts_covers_where_one_over_responses_does_not() -> None:
    # Eight samples a prompt, alike within it: taken for independent, they make the interval far too narrow.
    generator = np.random.default_rng(3)
    by_prompt, by_response = [], []
    for trial in range(300):
        rewards = generator.normal(0, 1, (40, 1)) + generator.normal(0, 0.3, (40, 8))
        by_prompt.append(bootstrap_interval(rewards.mean(axis=1), seed=trial, resamples=300))
        by_response.append(bootstrap_interval(rewards.ravel(), seed=trial, resamples=300))
    assert coverage(*np.array(by_prompt).T, truth=0) >= 0.90
    assert coverage(*np.array(by_response).T, truth=0) <= 0.60


def test_the_p_value_agrees_with_the_interval() -> None:
    for n in (7, 50, 400):
        for successes in range(n + 1):
            lower, upper = wilson_interval(successes, n)
            assert (rate_p_value(successes, n) < 0.05) == (not lower <= 0.5 <= upper)
    assert rate_p_value(0, 0) == 1.0


def test_holm_s_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    """Six pairs of equal models over 100 prompts each, 2,000 times."""
    generator = np.random.default_rng(0)
    wins = generator.binomial(100, 0.5, size=(2000, 6))
    false = [min(holm([rate_p_value(int(w), 100) for w in row])) < 0.05 for row in wins]
    bare = [min(rate_p_value(int(w), 100) for w in row) < 0.05 for row in wins]
    assert sum(false) / 2000 <= 0.05 + 0.015
    assert sum(bare) / 2000 > 0.2
