"""Means and whitening over the entries that a mask selects."""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries where mask is True, a scalar; 0 where it selects none.

    x: any shape, floating point; mask: the same shape, boolean. Other entries are left out by selection, not
    by multiplication: their gradients are exactly 0, also where they are not finite.
    """
    selected = torch.where(mask, x, x.new_zeros(()))
    return selected.sum() / mask.sum().clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Entries where mask is True, shifted to mean 0 and scaled to variance 1; the others are 0.

    x, mask: as in `masked_mean`. The variance is the population's: a single entry becomes 0, not NaN.
    """
    centred = torch.where(mask, x - masked_mean(x, mask), x.new_zeros(()))
    return centred * torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)
