import json
from itertools import pairwise

import numpy as np
import pytest

from mpo.evaluation_report import (
    ModelNumbers,
    accuracy_numbers,
    compare_models,
    prompt_means,
    rank_groups,
    reports_by_gap,
)
from mpo.intervals import bootstrap_interval, wilson_interval


def model(name: str, rewards: list[float], tokens: float = 5.0, kl: float = 0.0) -> ModelNumbers:
    count = len(rewards)
    return ModelNumbers(name, rewards, rewards, [tokens] * count, {"sft": [kl] * count}, 0.5, {})


def test_means_of_the_same_values_are_equal_in_any_order() -> None:
    values = [0.1, 0.2, 0.3, 1e16, -1e16, 0.7]
    assert prompt_means(values, 6) == prompt_means(values[::-1], 6) == [1.3 / 6]
    assert prompt_means([1.0, 2.0, 5.0, 7.0], 2) == [1.5, 6.0]


def test_accuracy_counts_ties_as_halves() -> None:
    assert accuracy_numbers([2.0, -1.0, 0.0, 0.5]) == {
        "accuracy": 2.5 / 4,
        "accuracy_ci95": list(wilson_interval(2.5, 4)),
        "pairs": 4,
    }


@pytest.mark.parametrize(
    ("prompts", "sizes"),
    [(1, [1]), (4, [4]), (9, [9]), (10, [5, 5]), (23, [6, 6, 6, 5]), (49, [6, 6, 6, 6, 5, 5, 5, 5, 5])],
)
def test_few_prompts_make_fewer_groups_and_none_is_empty(prompts: int, sizes: list[int]) -> None:
    assert [len(group) for group in rank_groups([0.5] * prompts)] == sizes


@pytest.mark.parametrize("prompts", [50, 64, 997])
def test_many_prompts_make_ten_groups_by_rank(prompts: int) -> None:
    gaps = np.random.default_rng(prompts).exponential(size=prompts)
    groups = rank_groups(gaps.tolist())
    assert len(groups) == 10
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert [row for group in groups for row in group] == np.argsort(gaps).tolist()


def test_wins_that_depend_on_the_gap_show_by_gap() -> None:
    gaps = np.random.default_rng(0).permutation(100) / 10
    better = model("b", [1.0 if gap >= 5 else -1.0 for gap in gaps], kl=2.5)
    groups = reports_by_gap([model("a", [0.0] * 100), better], gaps.tolist(), seed=0)
    rates = [group["win_rates"][0] for group in groups]  # type: ignore[index]
    assert [rate["win_rate"] for rate in rates] == [0.0] * 5 + [1.0] * 5
    assert all(rate["ci95"] == list(wilson_interval(rate["wins"], 10)) for rate in rates)
    assert [group["n"] for group in groups] == [10] * 10
    assert [group["gap"] for group in groups] == [[n, n + 0.9] for n in range(10)]
    assert all(a["gap"][1] < b["gap"][0] for a, b in pairwise(groups))  # type: ignore[index]
    of_b = groups[9]["models"][1]  # type: ignore[index]
    assert of_b == {
        "model": "b",
        "reward": {"mean": 1.0, "ci95": [1.0, 1.0]},
        "kl": {"sft": {"mean": 2.5, "ci95": [2.5, 2.5]}},
    }
    json.dumps(groups, allow_nan=False)


def test_every_two_models_are_compared_the_later_one_first() -> None:
    models = [model(name, [float(rank)] * 3) for rank, name in enumerate("abc")]
    rates = [(r["model_a"], r["model_b"], r["wins"]) for r in compare_models(models)]
    assert rates == [("b", "a", 3), ("c", "a", 3), ("c", "b", 3)]
    assert compare_models(models, [0, 2])[0]["n"] == 2


def test_a_model_s_means_have_intervals_over_prompts() -> None:
    rewards = np.random.default_rng(2).normal(size=30).tolist()
    found = model("a", rewards).to_json(seed=7)
    assert found["reward"] == {
        "mean": pytest.approx(np.mean(rewards)),
        "ci95": list(bootstrap_interval(rewards, seed=7)),
    }
    unknown = ModelNumbers("a", rewards, None, rewards, {}, 0.25, {}).to_json(seed=7)
    assert (unknown["training_reward"], unknown["kl"], unknown["eos_rate"]) == (None, {}, 0.25)
