"""The adaptive KL coefficient: keeps the policy at a chosen distance from its reference."""

from mpo.config import KLController

LARGEST_ERROR = 0.2
"""A KL far off the target counts as 20 % off: one strange batch must not throw the coefficient away."""


def next_kl_coefficient(coefficient: float, kl: float, episodes: int, controller: KLController) -> float:
    """The coefficient after `episodes` more responses whose mean KL to the reference was kl, in nats.

    Ziegler et al. 2019 (arXiv 1909.08593), 2.2: β ← β (1 + clip(KL / target − 1, ±0.2) · n / horizon).
    It stays above 0 while episodes < 5 · horizon.
    """
    error = min(max(kl / controller.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1 + error * episodes / controller.horizon)
