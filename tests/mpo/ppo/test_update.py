from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mpo.config import PPOStage
from mpo.generation import SampledResponse
from mpo.ppo.loss import OldTokens, ppo_policy_loss, ppo_value_loss
from mpo.ppo.networks import Critic
from mpo.ppo.rollouts import PassBound, Rollouts, form_micro_batches, measure_tokens
from mpo.ppo.state import PPOTraining
from mpo.ppo.update import update
from mpo.responses import ResponseBatch, response_logprobs
from tests.mpo.ppo.world import PAD, STOP, training_of

ROOM = PassBound(2**11, 2**11, padded=False)
RESPONSES = [[3, 4, 3, STOP], [STOP], [4, 4], [0, 3, STOP]]


def one_step(
    critic: str = "separate", **config: object
) -> tuple[PPOTraining, list[ResponseBatch], OldTokens]:
    """A training that is about to take a single optimizer step, on responses of unequal lengths."""
    settings = {"critic": critic, "max_steps": 1, "mini_batches": 1, "max_grad_norm": 1e9, **config}
    training = training_of(PPOStage.model_validate(settings), prompts=4)
    rollouts = Rollouts(
        [prompt.token_ids for prompt in training.prompts], [SampledResponse(ids) for ids in RESPONSES]
    )
    batches = form_micro_batches(rollouts, 1, ROOM, PAD, torch.device("cpu"))
    tokens = measure_tokens(training.networks, batches, 4, 1.0)
    generator = torch.Generator().manual_seed(1)
    advantages, returns = (torch.randn(4, 4, generator=generator) for _ in range(2))
    old = OldTokens(tokens.logprobs, tokens.values, advantages, returns, tokens.response_mask)
    return training, batches, old


def capture(found: list[Tensor], pick: Callable[[object], Tensor]) -> Callable[..., None]:
    """A forward hook that keeps a tensor of a module's output, with its gradient."""

    def hook(_module: object, _inputs: object, output: object) -> None:
        tensor = pick(output)
        tensor.retain_grad()
        found.append(tensor)

    return hook


@pytest.mark.parametrize("critic", ["separate", "shared_trunk"])
def test_logits_and_values_at_padding_have_gradients_of_exactly_zero(critic: str) -> None:
    training, (batch,), old = one_step(critic)
    logits: list[Tensor] = []
    values: list[Tensor] = []
    training.networks.policy.register_forward_hook(capture(logits, lambda output: output.logits))
    its_critic = training.networks.critic
    head = its_critic.network.score if isinstance(its_critic, Critic) else its_critic
    head.register_forward_hook(capture(values, lambda output: output))
    update(training, [batch], old)
    (logits_here,), (values_here,) = logits, values
    mask = batch.response_mask
    assert logits_here.grad is not None
    assert values_here.grad is not None
    at_tokens, after_the_last = logits_here.grad[:, :-1], logits_here.grad[:, -1]
    assert torch.equal(at_tokens[~mask], torch.zeros_like(at_tokens[~mask]))
    assert torch.equal(after_the_last, torch.zeros_like(after_the_last))
    assert bool((at_tokens[mask] != 0).any(dim=-1).all())
    assert values_here.grad.shape == (int(mask.sum()), 1), "values are computed at real tokens alone"
    assert bool((values_here.grad != 0).all())


def test_one_step_is_the_gradient_of_the_sum_of_both_losses() -> None:
    training, (batch,), old = one_step(learning_rate=0, value_coefficient=0.25)
    critic = training.networks.critic
    assert isinstance(critic, Critic)
    update(training, [batch], old)
    stepped = {
        f"{trained.name}.{name}": weight.grad.clone()
        for trained in training.trained
        for name, weight in trained.weights.items()
        if weight.grad is not None
    }
    for trained in training.trained:
        trained.optimizer.zero_grad(set_to_none=True)
    tokens = torch.tensor(sum(map(len, RESPONSES)))
    terms = ppo_policy_loss(
        response_logprobs(training.networks.policy, batch, 1.0), old, clip=0.2, tokens=tokens
    )
    value = ppo_value_loss(critic.values(batch), old, clip=0.2, tokens=tokens)
    (terms.loss + 0.25 * value).backward()
    for trained in training.trained:
        for name, weight in trained.weights.items():
            if weight.grad is not None:
                assert_close(stepped[f"{trained.name}.{name}"], weight.grad, atol=1e-7, rtol=1e-5)
    assert any(name.startswith("critic.") for name in stepped)


def test_the_policy_s_backward_pass_ends_before_the_critic_runs() -> None:
    training, (batch,), old = one_step()
    critic = training.networks.critic
    assert isinstance(critic, Critic)
    seen = []

    def hook(*_: object) -> None:
        seen.append(all(weight.grad is not None for weight in training.networks.policy.lm_head.parameters()))

    critic.network.base_model.register_forward_pre_hook(hook)
    update(training, [batch], old)
    assert seen == [True]


def test_a_shared_trunk_is_trained_by_the_value_loss_too() -> None:
    weights = []
    for coefficient in (0.0, 1.0):
        training, (batch,), old = one_step("shared_trunk", learning_rate=1e-2, value_coefficient=coefficient)
        head = training.networks.critic
        torch.nn.init.ones_(head.weight)  # at 0 the head passes no gradient on to the trunk
        update(training, [batch], old)
        weights.append(training.networks.policy.base_model.embed_tokens.weight.detach().clone())
    assert not torch.equal(*weights)


def test_the_learning_rate_falls_linearly_over_the_iterations() -> None:
    training = training_of(PPOStage(learning_rate=0.8, rollout_prompts=2, episodes=8))
    rates = []
    for training.iteration in range(4):
        rates.append(training.learning_rate())
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])
