import math

import pytest
import torch

from mpo.dpo.loss import PairLogprobs, dpo_loss, implicit_rewards


def logprobs(chosen: list[float], rejected: list[float]) -> PairLogprobs:
    return PairLogprobs(torch.tensor(chosen), torch.tensor(rejected))


def test_a_policy_that_equals_its_reference_costs_log_two() -> None:
    same = logprobs([-30.0, -7.5], [-12.0, -80.0])
    assert dpo_loss(same, same, beta=0.3).item() == pytest.approx(math.log(2), abs=1e-7)


def test_loss_by_hand() -> None:
    # Log-ratios 2 and -1, β = log(3)/3: β·3 = log 3, σ(log 3) = 3/4.
    policy, reference = logprobs([-8.0], [-11.0]), logprobs([-10.0], [-10.0])
    assert dpo_loss(policy, reference, math.log(3.0) / 3).item() == pytest.approx(-math.log(3 / 4), abs=1e-6)


def test_rewards_are_scaled_log_ratios() -> None:
    rewards = implicit_rewards(logprobs([-8.0], [-11.0]), logprobs([-10.0], [-10.0]), beta=0.5)
    assert (rewards.chosen.item(), rewards.rejected.item()) == (1.0, -0.5)


def test_gradient_is_beta_times_the_probability_of_the_wrong_order() -> None:
    # Rafailov et al. 2023, section 4: ∂L/∂log π(chosen) = -β·σ(r_rejected - r_chosen).
    policy = logprobs([-8.0], [-11.0])
    policy.chosen.requires_grad_(True)
    dpo_loss(policy, logprobs([-10.0], [-10.0]), math.log(3.0) / 3).backward()
    assert policy.chosen.grad is not None
    assert policy.chosen.grad.item() == pytest.approx(-math.log(3.0) / 3 / 4, abs=1e-6)
