import numpy as np
import pytest

from mpo.intervals import wilson_interval
from mpo.win_rates import length_controlled_rate, win_rate


def test_higher_score_wins_and_equal_scores_tie() -> None:
    rate = win_rate("ppo", "sft", ([1.0, 0.0, 2.0, 2.0], [0.0, 0.0, 3.0, 1.0]), ([5] * 4, [5] * 4))
    assert (rate.wins, rate.losses, rate.ties, rate.n) == (2, 1, 1, 4)
    assert rate.win_rate == 0.625
    assert rate.ci95 == wilson_interval(2.5, 4)
    assert not rate.significant
    assert rate.to_json()["ci95"] == list(rate.ci95)


def test_a_rate_is_significant_where_its_interval_excludes_one_half() -> None:
    scores = ([1.0] * 18 + [0.0] * 2, [0.0] * 18 + [1.0] * 2)
    rate = win_rate("a", "b", scores, ([5] * 20, [5] * 20))
    assert rate.ci95[0] > 0.5
    assert rate.significant


def test_wins_that_only_length_explains_vanish_when_length_is_controlled() -> None:
    generator = np.random.default_rng(0)
    longer = generator.normal(10, 10, 4000)
    outcomes = (generator.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(longer / longer.std())))).astype(float)
    assert outcomes.mean() > 0.65
    assert length_controlled_rate(outcomes, longer) == pytest.approx(0.5, abs=0.03)


def test_length_that_explains_nothing_leaves_the_rate() -> None:
    generator = np.random.default_rng(1)
    outcomes = (generator.random(4000) < 0.7).astype(float)
    assert length_controlled_rate(outcomes, generator.normal(0, 10, 4000)) == pytest.approx(
        outcomes.mean(), abs=0.01
    )


@pytest.mark.parametrize(("wins", "prompts"), [(3, 5), (20, 20), (0, 20)])
def test_no_length_controlled_rate_of_few_or_unanimous_outcomes(wins: int, prompts: int) -> None:
    outcomes = np.array([1.0] * wins + [0.0] * (prompts - wins))
    assert length_controlled_rate(outcomes, np.arange(prompts, dtype=float)) is None


def test_the_fit_is_finite_where_length_separates_wins_from_losses() -> None:
    longer = np.arange(-10.0, 10.0)
    rate = length_controlled_rate((longer > 0).astype(float), longer)
    assert rate is not None
    assert 0.2 < rate < 0.6
