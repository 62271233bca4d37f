"""The loss of reward models."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """Bradley-Terry loss of each pair, (batch,): with z = r_chosen - r_rejected - margin, and ε smoothing,
    -(1 - ε) log σ(z) - ε log σ(-z) + centring · (r_chosen + r_rejected)².

    chosen, rejected: rewards of the two responses of each pair, (batch,); margin: how much the rewards should
    differ at least, (batch,), 0 where it is None; label_smoothing: share of labels taken to be wrong, from 0
    to below ½. Stiennon et al. 2020 (arXiv 2009.01325), section 3.4; the margin, Touvron et al. 2023 (arXiv
    2307.09288), eq. 2; centring, Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2.
    """
    gap = chosen - rejected
    beyond = gap if margin is None else gap - margin
    # -log σ(-z) = z - log σ(z): the smoothed loss needs one log-sigmoid.
    losses = label_smoothing * beyond - F.logsigmoid(beyond)
    return losses + centring * (chosen + rejected).square()
