"""The loss of Direct Preference Optimization."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class PairLogprobs(NamedTuple):
    """Log-probabilities of the two responses of each pair, summed over tokens, in nats, each (batch,)."""

    chosen: Tensor
    rejected: Tensor


def implicit_rewards(policy: PairLogprobs, reference: PairLogprobs, beta: float) -> PairLogprobs:
    """β·(log π - log π_ref) of either response: the reward that the policy is optimal for, up to a term that
    depends on the prompt alone. Rafailov et al. 2023 (arXiv 2305.18290), eq. 5."""
    return PairLogprobs(
        beta * (policy.chosen - reference.chosen), beta * (policy.rejected - reference.rejected)
    )


def dpo_loss(policy: PairLogprobs, reference: PairLogprobs, beta: float) -> Tensor:
    """Mean DPO loss, a scalar: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    beta: inverse temperature of the implicit reward, per nat.
    """
    rewards = implicit_rewards(policy, reference, beta)
    return -F.logsigmoid(rewards.chosen - rewards.rejected).mean()
