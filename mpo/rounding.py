"""How far apart numbers may be that are the same sums in another order, as probes of models judge it."""

import torch
from torch import Tensor

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_COARSE_TOLERANCE = 3e-2


def tolerance_of(dtype: torch.dtype) -> float:
    """What states, logits or gradients of this type may differ by, as a share of the largest."""
    return _TOLERANCE.get(dtype, _COARSE_TOLERANCE)


def share_apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
