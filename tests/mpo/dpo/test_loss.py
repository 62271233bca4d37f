import math

import pytest
import torch

from mpo.dpo.loss import DPOLoss, PairLogprobs, PairTokens, dpo_loss, implicit_rewards, token_means

BETA = math.log(3.0) / 3
POLICY, REFERENCE = ([-8.0], [-11.0]), ([-10.0], [-10.0])
"""Log-ratios 2 and -1, so that βh = log 3: σ(βh) = 3/4."""


def logprobs(chosen: list[float], rejected: list[float]) -> PairLogprobs:
    return PairLogprobs(torch.tensor(chosen), torch.tensor(rejected))


def test_a_policy_that_equals_its_reference_costs_log_two() -> None:
    same = logprobs([-30.0, -7.5], [-12.0, -80.0])
    assert dpo_loss(same, same, beta=0.3).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


@pytest.mark.parametrize(
    ("loss", "flip_rate", "expected"),
    [
        ("sigmoid", 0.0, -math.log(3 / 4)),
        ("hinge", 0.0, 0.0),
        ("ipo", 0.0, (3 - 1.5 / math.log(3)) ** 2),
        # As labelled -log 3/4, as flipped -log 1/4; with ε = 1/5: (4/5·a - 1/5·b) / (3/5), and 4/5·a + 1/5·b.
        ("robust", 0.2, (0.8 * math.log(4 / 3) - 0.2 * math.log(4)) / 0.6),
        ("cdpo", 0.2, 0.8 * math.log(4 / 3) + 0.2 * math.log(4)),
    ],
)
def test_losses_by_hand(loss: DPOLoss, flip_rate: float, expected: float) -> None:
    found = dpo_loss(logprobs(*POLICY), logprobs(*REFERENCE), BETA, loss, flip_rate)
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


def test_hinge_costs_what_is_missing_to_its_margin() -> None:
    # Log-ratios 1 and 0.5, β = 0.4: 1 - 0.4·0.5.
    found = dpo_loss(logprobs([-9.0], [-9.5]), logprobs([-10.0], [-10.0]), 0.4, "hinge")
    assert found.item() == pytest.approx(0.8, abs=1e-6)


def test_the_robust_loss_under_flips_is_the_plain_loss_without_them() -> None:
    # Its mean over labels of which a share ε is exchanged: what makes it unbiased.
    policy, reference = logprobs(*POLICY), logprobs(*REFERENCE)
    exchanged = PairLogprobs(*reversed(policy)), PairLogprobs(*reversed(reference))
    mean = 0.7 * dpo_loss(policy, reference, BETA, "robust", 0.3) + 0.3 * dpo_loss(
        *exchanged, BETA, "robust", 0.3
    )
    assert mean.item() == pytest.approx(dpo_loss(policy, reference, BETA).item(), abs=1e-6)


def test_the_smoothed_loss_is_least_where_the_probability_is_that_of_the_labels() -> None:
    # dC/dh = 0 where σ(βh) = 1 - ε: with ε = 1/4 at βh = log 3, which is where we are.
    policy = logprobs(*POLICY)
    policy.chosen.requires_grad_(True)
    dpo_loss(policy, logprobs(*REFERENCE), BETA, "cdpo", 0.25).sum().backward()
    assert policy.chosen.grad is not None
    assert policy.chosen.grad.item() == pytest.approx(0, abs=1e-7)


def test_means_are_over_each_response_s_own_tokens() -> None:
    tokens = PairTokens(torch.tensor([4, 1]), torch.tensor([3, 2]))
    means = token_means(logprobs([-8.0, -5.0], [-9.0, -7.0]), tokens)
    assert (means.chosen.tolist(), means.rejected.tolist()) == ([-2.0, -5.0], [-3.0, -3.5])


def test_rewards_are_scaled_log_ratios() -> None:
    rewards = implicit_rewards(logprobs([-8.0], [-11.0]), logprobs([-10.0], [-10.0]), beta=0.5)
    assert (rewards.chosen.item(), rewards.rejected.item()) == (1.0, -0.5)


def test_gradient_is_beta_times_the_probability_of_the_wrong_order() -> None:
    # Rafailov et al. 2023, section 4: ∂L/∂log π(chosen) = -β·σ(r_rejected - r_chosen).
    policy = logprobs(*POLICY)
    policy.chosen.requires_grad_(True)
    dpo_loss(policy, logprobs(*REFERENCE), BETA).sum().backward()
    assert policy.chosen.grad is not None
    assert policy.chosen.grad.item() == pytest.approx(-BETA / 4, abs=1e-6)
