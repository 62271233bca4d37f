"""Generalized advantage estimation over the tokens of sampled responses."""

import torch
from torch import Tensor


def estimate_advantages(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token, neither whitened; both 0 where there is no token.

    rewards, values, response_mask: (episodes, tokens), fp32, fp32 and bool; a response's tokens come first.
    The value after the last token is 0, in a response that was cut too. returns = advantages + values.
    Schulman et al. 2016 (arXiv 1506.02438), eq. 16: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t.
    """
    values = values * response_mask
    rewards = rewards * response_mask
    advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    advantages = torch.empty_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantage = delta + discount * gae_lambda * advantage
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values
