import math

import pytest
import torch

from mpo.reward_model.loss import bradley_terry_loss


def test_equal_rewards_cost_log_two() -> None:
    loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([2.0]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_loss_is_the_mean_negative_log_probability_of_the_preference() -> None:
    # σ(log 3) = 3/4, σ(-log 3) = 1/4.
    three = math.log(3.0)
    loss = bradley_terry_loss(torch.tensor([three, 0.0]), torch.tensor([0.0, three]))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, abs=1e-6)


def test_a_margin_is_taken_from_the_gap() -> None:
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.25])
    found = bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.75]))
    assert found.item() == pytest.approx(math.log(2), abs=1e-6)


def test_a_large_wrong_gap_costs_its_size() -> None:
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert loss.item() == pytest.approx(1000.0)
