"""Gradient checkpointing: layers that keep their input alone and are computed again for the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mpo.last_layer import decoder_layers

NO_LAYERS = (
    "gradient_checkpointing changes nothing here: the model has no list of layers by a name that is known, "
    "so it keeps all that its backward pass needs."
)


def recompute_layers(model: PreTrainedModel, tell: Callable[[str], None]) -> None:
    """Has all layers but the last computed twice where gradients are wanted; tells where there are none.

    Chen et al. 2016 (arXiv 1604.06174). The last layer keeps what it computes: it is the first one that the
    backward pass needs, and `mpo/last_layer.py` has it computed where it is read, which is over by then.
    Numbers are the same to the bit: no layer draws at random, as dropout is off.
    """
    layers = decoder_layers(model)
    if layers is None:
        tell(NO_LAYERS)
        return
    for layer in list(layers)[:-1]:
        if not _is_recomputed(layer):
            layer.forward = partial(_recomputed, layer.forward)


def _is_recomputed(layer: nn.Module) -> bool:
    own = vars(layer).get("forward")
    return isinstance(own, partial) and own.func is _recomputed


def _recomputed(forward: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **settings)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **settings)
