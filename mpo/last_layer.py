"""The last layer, run only where somebody reads what comes of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.packed_rows import spread
from mpo.rotary_attention import attends_from_some, queries_at


@contextmanager
def last_layer_at(model: PreTrainedModel | AdaptedModel, places: Tensor) -> Iterator[None]:
    """Within it, a pass over one row gives final hidden states at these places, and anything elsewhere.

    Nothing after the last layer's attention mixes positions, and its queries are read where its result is. Of
    a pair's tokens a reward model reads two, and DPO those before the responses' tokens: the largest matrices
    of that layer need not see the others. Where a model has no such part by its usual name, all of it runs.
    """
    layers = decoder_layers(model.base.model if isinstance(model, AdaptedModel) else model)
    if layers is None:
        yield
        return
    kept = torch.unique(places)
    with ExitStack() as stack:
        attention, part = (getattr(layers[-1], name, None) for name in ("self_attn", "mlp"))
        # Elsewhere there is no attention from some tokens alone, and to name them would wait for the device.
        some = kept.device.type == "cpu" and len(kept)
        if some and isinstance(attention, nn.Module) and attends_from_some(attention):
            stack.enter_context(queries_at(attention, kept))
        if isinstance(part, nn.Module):
            stack.enter_context(_run_at(part, kept))
        yield


@contextmanager
def _run_at(part: nn.Module, kept: Tensor) -> Iterator[None]:
    tokens = list[int]()

    def narrow(_part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens.append(inputs[0].shape[1])
        return (inputs[0][:, kept], *inputs[1:])

    def widen(_part: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return spread(output, kept, tokens.pop())

    hooks = [part.register_forward_pre_hook(narrow), part.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """A model's layers in order, where it has them by a usual name."""
    for name in ("layers", "h"):
        layers: Any = getattr(model.base_model, name, None)
        if isinstance(layers, nn.ModuleList) and layers:
            return layers
    return None
