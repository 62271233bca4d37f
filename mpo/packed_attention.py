"""Attention over packed rows: every response sees its own prompt and itself, and nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mpo.blocked_attention import blocked_attention, blocks_of, takes_blocks
from mpo.packed_rows import PackedRow

PACKED = "mpo_packed"
"""What transformers knows this attention by; of rows that are not packed it is its own `sdpa`."""

NOT_UNDERSTOOD = ("softcap", "s_aux", "position_bias")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedRow | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query: (1, heads, T, width); key, value: (1, key heads, T, width).

    Gives (1, T, heads, width). Raises ValueError where the layer asks for what is not understood here.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if unknown := [name for name in NOT_UNDERSTOOD if settings.get(name) is not None]:
        raise ValueError(f"its attention has {', '.join(unknown)}")
    # Rotary positions leave fp32 where values are bf16: cast once here, not in each block and its repeats.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale, window = settings.get("scaling"), settings.get("sliding_window")
    if takes_blocks(query, blocks := blocks_of(packed), window):
        return blocked_attention(query, key, value, blocks, scale), None
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    sizes = [size for family in packed.blocks for size in family]
    # split, not slices: the gradient of a slice is a tensor of the whole row.
    queries, keys, values = (torch.split(tensor, sizes, dim=2) for tensor in (query, key, value))
    found, block = [], 0
    for prompt, family in zip(packed.prompts, packed.blocks, strict=True):
        first = block
        for block in range(first, first + len(family)):
            k, v = keys[block], values[block]
            if block > first:
                k = torch.cat((keys[first][:, :, :prompt], k), dim=2)
                v = torch.cat((values[first][:, :, :prompt], v), dim=2)
            found.append(_causal(queries[block], k, v, scale, window).transpose(1, 2))
        block += 1
    return torch.cat(found, dim=1), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """The last tokens of a sequence attend to all before and themselves, or the last `window` of these."""
    asked, known = query.shape[2], key.shape[2]
    if asked == known and (window is None or known <= window):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    seen = torch.ones((asked, known), dtype=torch.bool, device=query.device).tril(known - asked)
    if window is not None:
        seen = seen.triu(known - asked - window + 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
