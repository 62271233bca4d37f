"""The loss of reward models."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Mean Bradley-Terry loss, a scalar: -log σ(r_chosen - r_rejected - margin).

    chosen, rejected: rewards of the two responses of each pair, (batch,); margin: how much the rewards should
    differ at least, (batch,), 0 where it is None. Stiennon et al. 2020 (arXiv 2009.01325), section 3.4; with
    the margin, Touvron et al. 2023 (arXiv 2307.09288), eq. 2.
    """
    gap = chosen - rejected
    return -F.logsigmoid(gap if margin is None else gap - margin).mean()
