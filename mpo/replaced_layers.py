"""Layers of a model that are given a forward which computes the same in fewer passes over memory."""

from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from mpo import gated_feed_forward, rms_norm, rotary_attention

KINDS: Mapping[str, Callable[[nn.Module], Callable[..., Any] | None]] = {
    "norm": rms_norm.forward_of,
    "feed-forward part": gated_feed_forward.forward_of,
    "attention": rotary_attention.forward_of,
}
"""What tells of a layer the forward that computes the same, by what it is for."""


def replace_where_equal(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Has the layers for which there is one take such a forward from here on; which ones these are, by kind.

    Attention is the last kind: what a model gives to it depends on the model most.
    """
    found: dict[str, list[nn.Module]] = {kind: [] for kind in KINDS}
    for layer in model.modules():
        if "forward" in vars(layer):
            continue  # somebody else's: what its class says is not what it computes
        for kind, forward_of in KINDS.items():
            if (forward := forward_of(layer)) is not None:
                # Bound, so that a copy of the layer computes with its own weights.
                layer.forward = MethodType(forward, layer)
                found[kind].append(layer)
                break
    return found


def restore(layers: Iterable[nn.Module]) -> None:
    """Has such layers compute as their classes say."""
    for layer in layers:
        del layer.forward
