"""Layers of a model that are given a forward which computes the same in fewer passes over memory."""

from collections.abc import Iterable, Mapping
from types import MethodType, ModuleType

from torch import nn

from mpo import gated_feed_forward, rms_norm, rotary_attention

KINDS: Mapping[str, ModuleType] = {
    "norm": rms_norm,
    "attention": rotary_attention,
    "feed-forward part": gated_feed_forward,
}
"""Modules whose `forward_of` tells of a layer the forward that computes the same, by what they are for."""


def replace_where_equal(model: nn.Module) -> list[nn.Module]:
    """Has the layers for which there is one take such a forward from here on; which ones these are."""
    found = []
    for layer in model.modules():
        if "forward" in vars(layer):
            continue  # somebody else's: what its class says is not what it computes
        forwards = (kind.forward_of(layer) for kind in KINDS.values())
        if (forward := next(filter(None, forwards), None)) is not None:
            # Bound, so that a copy of the layer computes with its own weights.
            layer.forward = MethodType(forward, layer)
            found.append(layer)
    return found


def restore(layers: Iterable[nn.Module]) -> None:
    """Has such layers compute as their classes say."""
    for layer in layers:
        del layer.forward
