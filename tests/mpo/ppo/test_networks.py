from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mpo.checkpoints import load_state, save_state
from mpo.config import PPOStage
from mpo.errors import UnusableModel
from mpo.ppo.networks import (
    Networks,
    TrainedNetwork,
    ValueHead,
    check_alike,
    move_reference,
    trained_networks,
    weights_of,
)
from tests.mpo.ppo.world import llama_config, policy_of, reward_model_of, training_of
from tests.mpo.tiny import tiny_llama


def test_a_value_head_starts_at_exactly_0() -> None:
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    values = ValueHead(16).values(states)
    assert torch.equal(values, torch.zeros(2, 3))


def test_critic_and_policy_have_an_optimizer_each_and_a_shared_trunk_has_one() -> None:
    apart = training_of(PPOStage(critic="separate"))
    assert [trained.name for trained in apart.trained] == ["policy", "critic"]
    assert "score.weight" in apart.trained[1].weights
    shared = training_of(PPOStage(critic="shared_trunk"))
    (both,) = shared.trained
    policy = weights_of(shared.networks.policy)
    assert both.weights.keys() - policy.keys() == {"value_head.weight", "value_head.bias"}
    optimized = [id(p) for group in both.optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(weight) for weight in both.weights.values())
    assert both.optimizer.defaults["eps"] == 1e-5


def test_tied_weights_are_counted_once() -> None:
    config = llama_config()
    config.tie_word_embeddings = True
    policy = type(policy_of(0))(config)
    weights = weights_of(policy)
    assert len({id(weight) for weight in weights.values()}) == len(weights)
    assert not {"model.embed_tokens.weight", "lm_head.weight"} <= weights.keys()


def test_the_reference_moves_by_a_share_of_the_distance() -> None:
    policy, reference = policy_of(1), policy_of(2)
    before = {name: weight.detach().clone() for name, weight in weights_of(reference).items()}
    networks = Networks(policy, reference, ValueHead(16), reward_model_of(3))
    move_reference(networks, decay=0.75)
    for name, weight in weights_of(reference).items():
        assert_close(weight, 0.75 * before[name] + 0.25 * weights_of(policy)[name], atol=1e-7, rtol=0)


def test_a_reference_of_another_shape_cannot_follow_the_policy() -> None:
    check_alike(policy_of(0), policy_of(1))
    with pytest.raises(UnusableModel, match=r"ema_reference.*lm_head\.weight"):
        check_alike(policy_of(0), tiny_llama(40))


def test_a_state_puts_weights_and_optimizer_back(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    trained = TrainedNetwork.of("policy", {"w": weight}, 0.1)
    weight.grad = torch.tensor([3.0, 4.0])
    assert trained.clip_gradients(1.0) == pytest.approx(5.0)
    assert_close(weight.grad, torch.tensor([0.6, 0.8]))
    trained.step(0.1)
    # Adam's first step is the learning rate against the gradient's sign.
    assert_close(weight.detach(), torch.tensor([0.9, -2.1]), atol=1e-5, rtol=0)
    other = TrainedNetwork.of("policy", {"w": torch.nn.Parameter(torch.zeros(2))}, 0.1)
    save_state(tmp_path / "state.safetensors", trained.state())
    other.restore(load_state(tmp_path / "state.safetensors"))
    assert torch.equal(other.weights["w"], weight)
    weight.grad = other.weights["w"].grad = torch.tensor([0.5, 0.5])
    trained.step(0.01)
    other.step(0.01)
    assert torch.equal(other.weights["w"], weight)


def test_reference_and_reward_model_are_not_trained() -> None:
    training = training_of(PPOStage())
    listed = {id(w) for trained in training.trained for w in trained.weights.values()}
    for frozen in (training.networks.reference, training.networks.reward_model):
        assert not listed & {id(weight) for weight in frozen.parameters()}
    assert trained_networks(training.networks, 0.1)[0].optimizer.defaults["lr"] == 0.1
