"""The demo's truth: numbers worked by hand."""

import pytest

from embedded.gold import gold_means, gold_rewards, gold_wins

PROMPT = "\n\nHuman: My kettle leaks.\n\nAssistant:"
# + 1 a warm word, + 1.5 for an offer, + 0.5 for the prompt's product, - 1.5 a rude phrase.
KIND, CURT, RUDE = " I am sorry. I will send a new kettle.", " Noted.", " Calm down."


def test_rewards_are_the_grammar_s() -> None:
    assert gold_rewards([PROMPT, PROMPT], {"ppo": [KIND, RUDE], "sft": [CURT, CURT]}) == {
        "ppo": [3.0, -1.5],
        "sft": [0.0, 0.0],
    }


def test_ties_count_half_and_the_interval_is_wilson_s() -> None:
    rewards = {"sft": [0.0] * 10, "ppo": [1.0] * 7 + [0.0] * 2 + [-1.0]}
    (found,) = gold_wins(rewards)
    assert (found.model, found.against, found.wins, found.losses, found.ties) == ("ppo", "sft", 7, 1, 2)
    assert found.rate == 0.8
    # (0.8 + z²/20 ± z·sqrt(0.016 + z²/400)) / (1 + z²/10), z = 1.959964
    assert found.ci95 == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert found.verdict == "no difference shown"


def test_a_verdict_needs_the_whole_interval_on_one_side() -> None:
    (better,) = gold_wins({"a": [0.0] * 30, "b": [1.0] * 30})
    (worse,) = gold_wins({"a": [1.0] * 30, "b": [0.0] * 30})
    assert (better.verdict, worse.verdict) == ("better", "worse")


def test_every_later_model_meets_every_earlier_one() -> None:
    met = gold_wins({"sft": [0.0], "dpo": [0.0], "ppo": [0.0]})
    assert [(each.model, each.against) for each in met] == [("dpo", "sft"), ("ppo", "sft"), ("ppo", "dpo")]


def test_means_come_with_an_interval_around_them() -> None:
    (found,) = gold_means({"sft": [0.0, 1.0] * 50})
    assert found.mean == 0.5
    assert found.ci95[0] < 0.5 < found.ci95[1]
    assert found.ci95[1] - found.ci95[0] < 0.25
