"""Rewards of sampled tokens: the reward model's score at the end, less what the KL costs on the way."""

from torch import Tensor


def penalise_cut_responses(scores: Tensor, was_cut: Tensor, missing_eos_penalty: float) -> Tensor:
    """Scores, (episodes,), with the penalty taken off where a response was cut before it ended."""
    return scores - missing_eos_penalty * was_cut.to(scores.dtype)


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    reference_logprobs: Tensor,
    response_mask: Tensor,
    *,
    kl_coefficient: float,
) -> Tensor:
    """Rewards a token, (episodes, tokens): −β·k1, and the score added at each response's last token.

    scores: (episodes,); logprobs, reference_logprobs: (episodes, tokens), in nats; response_mask: True at a
    response's tokens, which come first. k1 = log π − log π_ref at the sampled token. Ziegler et al. 2019
    (arXiv 1909.08593), eq. 2. Raises nothing; a response without tokens gets no reward.
    """
    rewards = -kl_coefficient * (logprobs - reference_logprobs) * response_mask
    lengths = response_mask.sum(dim=1)
    last = (lengths - 1).clamp(min=0)[:, None]
    return rewards.scatter_add(1, last, (scores * (lengths > 0))[:, None].to(rewards.dtype))
