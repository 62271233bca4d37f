"""Adds the gradients that each rank has of its share of a step."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mpo.ranks import Ranks

BUCKET_NUMBERS = 2**24
"""Gradients that are sent together: 64 MiB of fp32, enough that a call's own time does not count."""


def sum_gradients(ranks: Ranks, weights: Iterable[nn.Parameter]) -> None:
    """Every gradient becomes the sum of all ranks'; one that no rank has stays away, as on one rank.

    weights: all on one device and of one type, in the same order on every rank.
    """
    if ranks.count == 1:
        return
    weights = list(weights)
    # A rank whose share is empty has none; a weight that the model does not use has none anywhere.
    present = ranks.sum(torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32))
    for bucket in buckets([weight for weight, ranks_ in zip(weights, present, strict=True) if ranks_ > 0]):
        together = ranks.sum(torch.cat([_gradient(weight).flatten() for weight in bucket]))
        parts = together.split([weight.numel() for weight in bucket])
        for weight, part in zip(bucket, parts, strict=True):
            weight.grad = part.view_as(weight)


def buckets(weights: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Weights, in their order, so many together as a bucket holds, but one at least."""
    here, held = list[nn.Parameter](), 0
    for weight in weights:
        if here and held + weight.numel() > BUCKET_NUMBERS:
            yield here
            here, held = [], 0
        here.append(weight)
        held += weight.numel()
    if here:
        yield here


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
