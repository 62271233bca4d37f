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


def lengths(generator: np.random.Generator, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of two models' responses, of which the first's are longer nine times in ten."""
    ours, theirs = generator.normal(60, 7, prompts), generator.normal(47, 7, prompts)
    return np.maximum(1, ours.round()), np.maximum(1, theirs.round())


@pytest.mark.parametrize(("prompts", "off"), [(100, 0.05), (1000, 0.02)])
def test_a_judge_that_only_likes_length_is_seen_through(prompts: int, off: float) -> None:
    # The score is the length: raw 0.9, though neither model is better.
    raw, controlled = [], []
    for seed in range(20):
        ours, theirs = lengths(np.random.default_rng(seed), prompts)
        rate = win_rate("long", "short", (ours, theirs), (ours, theirs))
        raw.append(rate.win_rate)
        controlled.append(rate.length_controlled)
    assert np.mean(raw) == pytest.approx(0.9, abs=0.02)
    assert np.mean(controlled) == pytest.approx(0.5, abs=off)


def test_a_judge_that_likes_length_more_or_less_is_seen_through_without_bias() -> None:
    generator = np.random.default_rng(0)
    controlled = []
    for _ in range(60):
        ours, theirs = lengths(generator, 200)
        liked = 1 / (1 + np.exp(-0.4 * (ours - theirs)))
        outcomes = (generator.random(200) < liked).astype(float)
        controlled.append(length_controlled_rate(outcomes, ours - theirs))
    # The mean of 60 rates, each with a standard deviation of about 0.11.
    assert np.mean(controlled) == pytest.approx(0.5, abs=3 * 0.11 / np.sqrt(60))


def test_what_a_judge_likes_beside_length_stays() -> None:
    generator = np.random.default_rng(1)
    longer = generator.normal(5, 10, 4000)
    outcomes = (generator.random(4000) < 1 / (1 + np.exp(-0.1 * longer - np.log(0.7 / 0.3)))).astype(float)
    assert outcomes.mean() > 0.74
    assert length_controlled_rate(outcomes, longer) == pytest.approx(0.7, abs=0.03)


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
    longer = np.arange(-10.0, 11.0)
    rate = length_controlled_rate((np.sign(longer) + 1) / 2, longer)
    assert rate == pytest.approx(0.5, abs=1e-6)


def test_no_length_controlled_rate_where_one_model_is_longer_throughout() -> None:
    outcomes = np.array([1.0, 0.0] * 10)
    assert length_controlled_rate(outcomes, np.arange(1.0, 21.0)) is None
    assert length_controlled_rate(outcomes, -np.arange(1.0, 21.0)) is None
    assert length_controlled_rate(outcomes, np.arange(0.0, 20.0)) is not None
    assert length_controlled_rate(outcomes, np.zeros(20)) == 0.5


def test_the_fit_is_where_its_penalized_score_is_zero() -> None:
    # Two lengths of ±1, ten prompts each: with an intercept the model is saturated, and Firth's estimate adds
    # half a win and half a loss to each: logits log(8.5/2.5) and log(3.5/7.5), their mean at no difference.
    outcomes = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 3 + [0.0] * 7)
    longer = np.array([1.0] * 10 + [-1.0] * 10)
    logit = (np.log(8.5 / 2.5) + np.log(3.5 / 7.5)) / 2
    assert length_controlled_rate(outcomes, longer) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-9)


def test_exchanging_the_models_exchanges_the_rate() -> None:
    generator = np.random.default_rng(4)
    longer = generator.normal(3, 8, 40).round()
    outcomes = generator.choice([0.0, 0.5, 1.0], 40)
    forth, back = length_controlled_rate(outcomes, longer), length_controlled_rate(1 - outcomes, -longer)
    assert forth is not None
    assert back == pytest.approx(1 - forth, abs=1e-7)


def test_means_over_samples_may_be_compared() -> None:
    rate = win_rate("a", "b", ([1.5, 0.25], [1.0, 0.5]), ([4.5, 3.0], [5.0, 2.5]))
    assert (rate.wins, rate.losses, rate.win_rate, rate.n) == (1, 1, 0.5, 2)
    assert not rate.significant
