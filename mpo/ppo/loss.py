"""The losses of Proximal Policy Optimization, summed over tokens and divided by a given count."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this: e^20 is still finite in fp32, and so are its gradients."""


@dataclass(frozen=True)
class OldTokens:
    """What a rollout fixed about its tokens before the update: each (rows, tokens).

    logprobs, values: of the policy and critic that sampled; advantages: whitened; returns: not whitened.
    """

    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    response_mask: Tensor

    def rows(self, rows: Tensor, response_mask: Tensor) -> "OldTokens":
        """Those of a micro-batch. rows: its numbers; response_mask: (its rows, its columns)."""
        here = (rows, slice(0, response_mask.shape[1]))
        return OldTokens(
            self.logprobs[here], self.values[here], self.advantages[here], self.returns[here], response_mask
        )


@dataclass(frozen=True)
class PolicyTerms:
    """A micro-batch's share of an optimizer step: a loss ready to be summed, and what to report."""

    loss: Tensor
    clipped_tokens: Tensor
    largest_ratio: Tensor


def policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate loss a token: −min(ρ A, clip(ρ, 1 ± ε) A); Schulman et al. 2017, eq. 7."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Clipped value loss a token: ½ max((V − R)², (V_old + clip(V − V_old, ± c) − R)²)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def ppo_policy_loss(logprobs: Tensor, old: OldTokens, *, clip: float, tokens: Tensor) -> PolicyTerms:
    """Policy loss over the real tokens of a micro-batch; Schulman et al. 2017 (arXiv 1707.06347).

    logprobs: (rows, tokens), of the policy in training. tokens: the real tokens of the whole optimizer step,
    so that micro-batches of any size add up to one mean. Padding has no gradient at all.
    """
    mask = old.response_mask
    # Padding is replaced, not multiplied by 0: 0 · inf would be NaN.
    log_ratio = (logprobs - old.logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    surrogate = policy_loss(ratio, old.advantages, clip).masked_fill(~mask, 0.0)
    ratio = ratio.detach()
    return PolicyTerms(
        loss=surrogate.sum() / tokens,
        clipped_tokens=(((ratio - 1).abs() > clip) & mask).sum(),
        largest_ratio=ratio.max(),
    )


def ppo_value_loss(values: Tensor, old: OldTokens, *, clip: float, tokens: Tensor) -> Tensor:
    """Value loss over the real tokens of a micro-batch, a scalar; arguments as in `ppo_policy_loss`."""
    values = torch.where(old.response_mask, values, old.returns)
    squares = value_loss(values, old.values, old.returns, clip).masked_fill(~old.response_mask, 0.0)
    return squares.sum() / tokens
