"""Attention over packed rows: every response sees its own prompt and itself, and nothing else."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mpo.blocked_attention import blocked_attention, takes_blocks
from mpo.packed_rows import PackedRow, Span

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
    queries: Sequence[Span] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query: (1, heads, n, width); key, value: (1, key heads, T, width).

    Gives (1, n, heads, width). queries: which tokens of the row the n are; None = all of them. Raises
    ValueError where the layer asks for what is not understood here.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if unknown := [name for name in NOT_UNDERSTOOD if settings.get(name) is not None]:
        raise ValueError(f"its attention has {', '.join(unknown)}")
    # Rotary positions leave fp32 where values are bf16: cast once here, not in each block and its repeats.
    query, key = query.to(value.dtype), key.to(value.dtype)
    spans = packed.spans if queries is None else queries
    scale, window = settings.get("scaling"), settings.get("sliding_window")
    if takes_blocks(key, spans, window):
        return blocked_attention(query, key, value, spans, scale), None
    return _span_by_span(query, key, value, packed, spans, scale, window), None


def _span_by_span(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PackedRow,
    spans: Sequence[Span],
    scale: float | None,
    window: int | None,
) -> Tensor:
    """The same by torch's attention: (1, n, heads, width)."""
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # split, not slices: the gradient of a slice is a tensor of the whole row.
    sizes, starts = [span.queries for span in row.spans], [span.first for span in row.spans]
    keys, values = (dict(zip(starts, torch.split(each, sizes, dim=2), strict=True)) for each in (key, value))
    found = []
    for span, asked in zip(spans, torch.split(query, [span.queries for span in spans], dim=2), strict=True):
        k, v = (_first(each[span.first], span.stop - span.first) for each in (keys, values))
        if prompt := span.seen_of_prompt:
            k = torch.cat((_first(keys[span.prompt], prompt), k), dim=2)
            v = torch.cat((_first(values[span.prompt], prompt), v), dim=2)
        found.append(_causal(asked, k, v, scale, window).transpose(1, 2))
    return torch.cat(found, dim=1)


def _first(by_head: Tensor, tokens: int) -> Tensor:
    return by_head if tokens == by_head.shape[2] else by_head[:, :, :tokens]


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """The last tokens of a sequence attend to all before and themselves, or the last `window` of these."""
    asked, known = query.shape[2], key.shape[2]
    if asked in (1, known) and (window is None or known <= window):
        return F.scaled_dot_product_attention(query, key, value, is_causal=asked > 1, scale=scale)
    seen = torch.ones((asked, known), dtype=torch.bool, device=query.device).tril(known - asked)
    if window is not None:
        seen = seen.triu(known - asked - window + 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
