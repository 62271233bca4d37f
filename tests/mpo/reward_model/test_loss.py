import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo.reward_model.loss import bradley_terry_loss

THREE = math.log(3.0)
REWARDS = st.floats(-20, 20)


def test_equal_rewards_cost_log_two() -> None:
    loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([2.0]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_loss_is_each_pairs_negative_log_probability_of_the_preference() -> None:
    # σ(log 3) = 3/4, σ(-log 3) = 1/4.
    losses = bradley_terry_loss(torch.tensor([THREE, 0.0]), torch.tensor([0.0, THREE]))
    assert losses.tolist() == pytest.approx([-math.log(3 / 4), -math.log(1 / 4)], abs=1e-6)


def test_a_margin_is_taken_from_the_gap_of_its_pair() -> None:
    chosen, rejected = torch.tensor([1.0, 1.0]), torch.tensor([0.25, 1.0])
    found = bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.75, -THREE]))
    assert found.tolist() == pytest.approx([math.log(2), -math.log(3 / 4)], abs=1e-6)


def test_smoothing_takes_a_share_of_the_labels_to_be_wrong() -> None:
    found = bradley_terry_loss(torch.tensor([THREE]), torch.tensor([0.0]), label_smoothing=0.1)
    assert found.item() == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4), abs=1e-6)


def test_a_smoothed_loss_is_lowest_where_the_reward_model_is_as_sure_as_the_labels() -> None:
    # σ(log 9) = 0.9.
    gap = torch.tensor([math.log(9.0)], dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(gap, torch.zeros(1, dtype=torch.float64), label_smoothing=0.1).sum().backward()
    assert gap.grad is not None
    assert gap.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_centring_costs_the_square_of_the_rewards_sum() -> None:
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    plain = bradley_terry_loss(chosen, rejected).item()
    assert bradley_terry_loss(chosen, rejected, centring=0.01).item() == pytest.approx(plain + 0.09, abs=1e-6)


def test_a_large_wrong_gap_costs_its_size() -> None:
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert loss.item() == pytest.approx(1000.0)


@given(REWARDS, REWARDS, st.floats(-3, 3), st.floats(0, 0.49), st.floats(0, 1))
def test_the_whole_loss_is_its_formula(
    chosen: float, rejected: float, margin: float, smoothing: float, centring: float
) -> None:
    z = chosen - rejected - margin
    right, wrong = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
    expected = (1 - smoothing) * right + smoothing * wrong + centring * (chosen + rejected) ** 2
    found = bradley_terry_loss(
        *torch.tensor([[chosen], [rejected]], dtype=torch.float64),
        margin=torch.tensor([margin], dtype=torch.float64),
        label_smoothing=smoothing,
        centring=centring,
    )
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
