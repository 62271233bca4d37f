import math

import pytest
import torch
from torch.testing import assert_close

from mpo.ppo.loss import (
    LOG_RATIO_LIMIT,
    OldTokens,
    PolicyTerms,
    policy_loss,
    ppo_policy_loss,
    ppo_value_loss,
    value_loss,
)


def losses_of(
    logprobs: torch.Tensor, values: torch.Tensor, old: OldTokens, tokens: int | None = None
) -> tuple[PolicyTerms, torch.Tensor]:
    count = old.response_mask.sum() if tokens is None else torch.tensor(tokens)
    terms = ppo_policy_loss(logprobs, old, clip=0.2, tokens=count)
    return terms, ppo_value_loss(values, old, clip=0.2, tokens=count)


def old_tokens(rows: int, columns: int, mask: torch.Tensor | None = None) -> OldTokens:
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(rows, columns, generator=generator) for _ in range(4)]
    return OldTokens(*draw, torch.ones(rows, columns, dtype=torch.bool) if mask is None else mask)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.5, 1.0, -1.2),  # the gain of a large step is capped
        (1.1, 1.0, -1.1),
        (0.5, -1.0, 0.8),
        (1.5, -1.0, 1.5),  # but never its cost
        (0.5, 1.0, -0.5),
    ],
)
def test_clipping_caps_the_gain_of_a_large_step(ratio: float, advantage: float, loss: float) -> None:
    assert_close(policy_loss(torch.tensor(ratio), torch.tensor(advantage), 0.2), torch.tensor(loss))


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    values, old, returns = torch.tensor([2.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0])
    # First: exact, but it jumped: ½ (0.2 - 2)². Second: within the range: ½ (0.1 - 1)².
    assert_close(value_loss(values, old, returns, 0.2), torch.tensor([1.62, 0.405]))


def test_gradients_at_padding_are_exactly_zero_even_where_it_is_not_finite() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logprobs = torch.full((2, 3), -1.0).masked_fill(~mask, -math.inf).requires_grad_()
    values = torch.full((2, 3), 0.3).masked_fill(~mask, math.inf).requires_grad_()
    terms, value = losses_of(logprobs, values, old_tokens(2, 3, mask))
    (terms.loss + value).backward()
    for gradient in (logprobs.grad, values.grad):
        assert gradient is not None
        assert torch.equal(gradient[~mask], torch.zeros(3))
        assert bool((gradient[mask] != 0).any())


def test_micro_batches_of_any_size_add_up_to_the_whole() -> None:
    old = old_tokens(4, 5, torch.arange(5)[None] < torch.tensor([5, 2, 3, 1])[:, None])
    logprobs, values = old.logprobs + 0.1, old.values - 0.3
    whole, whole_value = losses_of(logprobs, values, old)
    parts = [
        losses_of(
            logprobs[rows],
            values[rows],
            OldTokens(
                old.logprobs[rows],
                old.values[rows],
                old.advantages[rows],
                old.returns[rows],
                old.response_mask[rows],
            ),
            tokens=11,
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert_close(sum(terms.loss for terms, _ in parts), whole.loss)
    assert_close(sum(value for _, value in parts), whole_value)
    assert sum(int(terms.clipped_tokens) for terms, _ in parts) == int(whole.clipped_tokens)


def test_a_huge_log_ratio_stays_finite() -> None:
    old = old_tokens(1, 2)
    terms, _ = losses_of(old.logprobs + 500, old.values, old)
    assert float(terms.largest_ratio) == pytest.approx(math.exp(LOG_RATIO_LIMIT), rel=1e-5)
    assert bool(torch.isfinite(terms.loss))
