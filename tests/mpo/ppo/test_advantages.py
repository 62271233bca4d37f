import torch
from torch.testing import assert_close

from mpo.ppo.advantages import estimate_advantages


def naive_advantages(
    rewards: list[float], values: list[float], discount: float, gae_lambda: float
) -> list[float]:
    """The definition: a double sum over the deltas that follow."""
    after = [*values[1:], 0.0]
    deltas = [r + discount * n - v for r, v, n in zip(rewards, values, after, strict=True)]
    return [
        sum((discount * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def test_advantages_equal_a_naive_double_sum_for_every_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 4, 7, 2]
    rewards = torch.randn(4, 7, generator=generator)
    values = torch.randn(4, 7, generator=generator)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    advantages, returns = estimate_advantages(rewards, values, mask, discount=0.9, gae_lambda=0.8)
    for row, length in enumerate(lengths):
        naive = naive_advantages(rewards[row, :length].tolist(), values[row, :length].tolist(), 0.9, 0.8)
        assert_close(advantages[row, :length], torch.tensor(naive), atol=1e-6, rtol=1e-5)
        assert_close(returns[row, :length], torch.tensor(naive) + values[row, :length], atol=1e-6, rtol=1e-5)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    rewards, values = torch.ones(2, 3), torch.full((2, 3), 0.5)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    plain, _ = estimate_advantages(rewards, values, mask, discount=1.0, gae_lambda=0.95)
    rewards[0, 2], values[0, 2] = 100.0, -100.0
    other, returns = estimate_advantages(rewards, values, mask, discount=1.0, gae_lambda=0.95)
    assert torch.equal(plain, other)
    assert returns[0, 2] == 0


def test_without_discount_the_returns_are_the_rewards_to_come() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    _, returns = estimate_advantages(
        rewards,
        torch.tensor([[3.0, 5.0, 7.0]]),
        torch.ones(1, 3, dtype=torch.bool),
        discount=1.0,
        gae_lambda=1.0,
    )
    assert_close(returns, torch.tensor([[7.0, 6.0, 4.0]]))
