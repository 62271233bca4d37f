import pytest
import torch

from mpo.config import PPOStage
from mpo.ppo.iteration import iterate
from mpo.ppo.stops import nothing_to_learn, passed_max_kl
from tests.mpo.ppo.world import training_of

EQUAL, DIFFERENT = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.6])


def test_equal_rewards_stop_only_after_so_many_iterations_in_a_row() -> None:
    training = training_of(PPOStage(equal_iterations=2))
    assert nothing_to_learn(training, EQUAL) is None
    assert nothing_to_learn(training, DIFFERENT) is None
    assert nothing_to_learn(training, EQUAL) is None
    assert nothing_to_learn(training, torch.tensor([0.5])) is None  # one reward equals itself
    assert nothing_to_learn(training, EQUAL) is None
    assert (
        nothing_to_learn(training, EQUAL) == "all rewards of an iteration were equal, 2 iterations in a row"
    )


def test_a_kl_above_max_kl_is_named_with_the_limit() -> None:
    training = training_of(PPOStage(max_kl=2.0))
    assert passed_max_kl(training, 2.0) is None
    assert passed_max_kl(training, 2.5) == "the KL to the reference, 2.5 nats a response, passed max_kl 2"
    assert passed_max_kl(training_of(PPOStage()), 1e9) is None


def test_a_training_whose_rewards_never_differ_stops() -> None:
    config = PPOStage(
        rollout_prompts=4, episodes=40, max_new_tokens=2, equal_iterations=3, missing_eos_penalty=0
    )
    training = training_of(config, scale=0.0)
    while training.stopped is None:
        assert iterate(training, lambda: False) is not None
    assert training.iteration == 3
    assert "all rewards of an iteration were equal, 3 iterations" in training.stopped


def test_a_penalty_for_cut_responses_is_something_to_learn() -> None:
    config = PPOStage(rollout_prompts=16, episodes=32, max_new_tokens=2, equal_iterations=1)
    training = training_of(config, scale=0.0)
    metrics = iterate(training, lambda: False)
    assert metrics is not None
    assert 0 < metrics["eos_rate"] < 1
    assert training.stopped is None


def test_past_max_kl_nothing_is_updated() -> None:
    config = PPOStage(rollout_prompts=16, episodes=32, max_new_tokens=2, max_kl=1e-3)
    training = training_of(config, policy_seed=1)
    before = training.networks.policy.lm_head.weight.clone()
    metrics = iterate(training, lambda: False)
    assert metrics is not None
    assert metrics["kl"] > 1e-3
    assert "loss" not in metrics
    assert training.optimizer_steps == 0
    assert torch.equal(training.networks.policy.lm_head.weight, before)
    assert training.stopped is not None
    assert training.stopped.endswith("passed max_kl 0.001")
    assert metrics["kl"] == pytest.approx(float(training.stopped.split()[5]), rel=1e-2)
