"""What an iteration's episodes say before the update."""

from collections.abc import Sequence

from torch import Tensor

from mpo.generation import SampledResponse
from mpo.masking import masked_mean
from mpo.ppo.loss import OldTokens
from mpo.ppo.rollouts import RolloutTokens

ROUNDING = 1e-6
"""Relative differences of this size are fp32's own."""


def rollout_metrics(
    responses: Sequence[SampledResponse], scores: Tensor, tokens: RolloutTokens, old: OldTokens
) -> dict[str, float]:
    """Means over the episodes, or over their tokens; KLs in nats a response, entropy in nats a token.

    reward is the reward model's score alone, without penalties. The KLs are sums of k1 = log π − log π_ref
    at the sampled tokens: unbiased, and below 0 where chance will have it.
    """
    mask, episodes = tokens.response_mask, len(responses)
    metrics = {
        "reward": scores.mean().item(),
        "kl": response_kl(tokens.logprobs, tokens.reference_logprobs),
        "entropy": masked_mean(tokens.entropies, mask).item(),
        "explained_variance": explained_variance(old.values, old.returns, mask),
        "response_tokens": mask.sum().item() / episodes,
        "eos_rate": sum(response.finish_reason == "stop" for response in responses) / episodes,
    }
    if tokens.sft_logprobs is not None:
        metrics["kl_to_sft"] = response_kl(tokens.logprobs, tokens.sft_logprobs)
    return metrics


def response_kl(logprobs: Tensor, reference_logprobs: Tensor) -> float:
    """Estimate of the KL in nats a response: (episodes, tokens) both, 0 at padding."""
    return (logprobs - reference_logprobs).sum().item() / len(logprobs)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns) over real tokens; 0 where they vary by rounding alone."""
    total = masked_variance(returns, mask)
    rounding = ROUNDING**2 * masked_mean(returns.square(), mask)
    return (1 - masked_variance(returns - values, mask) / total).item() if total > rounding else 0.0


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the entries where mask is True, a scalar."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)
