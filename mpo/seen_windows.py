"""How far the layers of a model see: by the masks that they are given, and by what they ask of attention."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from mpo.packed_attention import packed_attention
from mpo.packed_rows import Family, PackedRow

ASKED = "mpo_packed_asked"
"""What transformers knows the packed attention by that compares a layer's mask with what the layer asks."""
ROW = [Family([0] * 3, [[0] * 2])]


@torch.no_grad()
def check_windows(model: PreTrainedModel) -> None:
    """Raises ValueError where a layer's mask limits how far it sees, and the layer does not say so.

    Packed rows have no masks: how far a layer sees is what it asks for. A window is longer than any row that
    could be tried when a model is loaded, so numbers would not show that it is gone.
    """
    usual = model.config.get_text_config()._attn_implementation
    row = PackedRow.of(ROW, model.device)
    model.set_attn_implementation(ASKED)
    try:
        # Without a mask of four dimensions: transformers makes one of its own for each kind of layer.
        model.base_model(**{**row.inputs(), "attention_mask": None})
    finally:
        model.set_attn_implementation(usual)


def _compared(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    if mask is not None and (mask.dtype != torch.long or mask.numel() != 1):
        raise ValueError("it makes masks of its own")
    of_mask = 0 if mask is None else int(mask)
    if of_mask != (settings.get("sliding_window") or 0):
        raise ValueError(f"how far a layer sees, {of_mask or 'all'} tokens, is in its mask alone")
    return packed_attention(module, query, key, value, None, **settings)


def _window_as_mask(*_: object, device: torch.device | str = "cpu", **settings: Any) -> Tensor:
    """In a mask's place how far it lets see: (1, 1, 1, 1), int64; 0 = to the beginning."""
    return torch.full((1, 1, 1, 1), settings.get("local_size") or 0, device=device)


AttentionInterface.register(ASKED, _compared)
AttentionMaskInterface.register(ASKED, _window_as_mask)
