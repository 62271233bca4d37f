"""Whether a layer computes what a forward of ours computes, seen by trying."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from mpo.rounding import share_apart, tolerance_of

LARGE = 100.0
"""Beside numbers of usual size some are drawn so much larger, at which it shows what a layer clamps."""
CANNOT = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a layer raises that is called otherwise, or is made otherwise."""


def is_made_of(layer: nn.Module, parts: Collection[str]) -> bool:
    """Whether a layer has such parts, and no weight outside of them; all of fp32, as others differ in what
    they round."""
    children, weights = dict(layer.named_children()), list(layer.parameters())
    if not children.keys() >= set(parts) or not weights:
        return False
    of_parts = [weight for name in parts for weight in children[name].parameters()]
    return len(of_parts) == len(weights) and all(weight.dtype == torch.float32 for weight in weights)


@torch.no_grad()
def gives_the_same(ours: Callable[[Tensor], Any], theirs: Callable[[Tensor], Any], like: Tensor) -> bool:
    """Whether both give a tensor of the same numbers, to rounding, for some of `like`'s shape and device.

    Where theirs are 0 it shows nothing, and they count as different.
    """
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    try:
        for size in (1.0, LARGE):
            found, expected = ours(size * drawn), theirs(size * drawn)
            if not isinstance(expected, Tensor) or found.shape != expected.shape or not expected.any():
                return False
            # Among large numbers a softmax makes more of the same roundings.
            if not share_apart(found, expected) <= size * tolerance_of(expected.dtype):
                return False
    except CANNOT:
        return False
    return True
