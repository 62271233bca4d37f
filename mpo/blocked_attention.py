"""Causal attention of a packed row on a CPU, by matrix products over blocks of queries.

torch's kernel for CPUs takes a few queries a product, and sequences of pairs are some hundred tokens long.
Here the queries of a block, those of all heads that share keys, are one product with the keys up to the last
of them. The attention's weights are kept for the backward pass, so that no exponential is computed twice, as
long as they are little memory.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mpo.packed_rows import Span

QUERIES = 96
"""Tokens of a block, about: of fewer, products are too small; of more, too much of them is masked."""
MEAN_KEYS = 256
"""Numbers that are kept at most of a layer's weights, a token of the row and head: as many as keys that a
query sees in the mean, where all tokens are queries."""


@lru_cache(maxsize=2**12)
def blocks_of(span: Span) -> Sequence[Span]:
    """A sequence's queries in blocks of nearly equal size; every layer asks for the same ones."""
    count = max(1, round(span.queries / QUERIES))
    edges = [span.start + span.queries * part // count for part in range(count + 1)]
    return tuple(span._replace(start=begin, stop=end) for begin, end in pairwise(edges))


def takes_blocks(key: Tensor, spans: Sequence[Span], window: int | None) -> bool:
    """Whether the row's attention is faster so, within a memory that is small beside the layer's own.

    key: (1, key heads, T, width). window: keys that a query sees at most, of which blocks know nothing; None
    = all before it.
    """
    if key.device.type != "cpu" or key.dtype != torch.float32:
        return False
    kept = sum(block.queries * block.keys for span in spans for block in blocks_of(span))
    whole = window is None or max(span.keys for span in spans) <= window
    return whole and kept <= MEAN_KEYS * key.shape[2]


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float | None
) -> Tensor:
    """query: (1, heads, n, width); key, value: (1, key heads, T, width). Gives (1, n, heads, width).

    spans: the n queries in their order. scale: of the products; None = 1/√width.
    """
    scale = query.shape[3] ** -0.5 if scale is None else scale
    found: Tensor = BlockedAttention.apply(query, key, value, spans, scale)  # type: ignore[no-untyped-call]
    return found


class BlockedAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) V under the spans' mask (Vaswani et al. 2017, equation 1).

    A row has many blocks, and each of them little to compute: little else is called for each.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float
    ) -> Tensor:
        """(1, n, heads, width)."""
        blocks, shared = _blocks(spans), key.shape[1]
        result = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        kept = any(ctx.needs_input_grad)
        weights = _weights(query, blocks) if kept else _one_by_one(query, blocks)
        asked, answers = (_by_block(each, blocks, shared) for each in (query[0], result[0].transpose(0, 1)))
        seen, offered = _seen(key[0], spans), _seen(value[0], spans)
        each = zip(blocks, weights, asked, seen, offered, answers, strict=True)
        for block, place, queries, keys, values, answer in each:
            weight = place.view(shared, -1, block.keys)
            torch.baddbmm(weight, _joined(queries), keys.transpose(1, 2), beta=0, alpha=scale, out=weight)
            own = weight.view(-1, block.queries, block.keys)[:, :, block.keys - block.queries :]
            own.add_(_later(block.queries))
            torch.softmax(weight, -1, out=weight)
            answer.copy_(torch.bmm(weight, values).view(answer.shape))
        if kept:
            ctx.save_for_backward(query, key, value, *weights)
        ctx.spans, ctx.scale = spans, scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Of query, key and value."""
        query, key, value, *weights = ctx.saved_tensors
        blocks, shared = _blocks(ctx.spans), key.shape[1]
        of_query, of_key, of_value = map(_by_token, (query, key, value))
        of_key.zero_()
        of_value.zero_()
        wanted = _by_block(gradients[0][0].transpose(0, 1), blocks, shared)
        asked, of_asked = (_by_block(each[0], blocks, shared) for each in (query, of_query))
        seen, offered = _seen(key[0], ctx.spans), _seen(value[0], ctx.spans)
        places = _one_by_one(query, blocks)
        each = zip(blocks, weights, places, asked, wanted, seen, offered, of_asked, strict=True)
        for block, weight, place, queries, gradient, keys, values, of_queries in each:
            weight, place = weight.view(shared, -1, block.keys), place.view(shared, -1, block.keys)
            queries, gradient = _joined(queries), _joined(gradient)
            torch.bmm(gradient, values.transpose(1, 2), out=place)
            torch._softmax_backward_data(place, weight, -1, weight.dtype, grad_input=place)
            of_queries.copy_(torch.bmm(place, keys).view(of_queries.shape))
            _add(of_key[0], block, torch.bmm(place.transpose(1, 2), queries))
            _add(of_value[0], block, torch.bmm(weight.transpose(1, 2), gradient))
        return of_query.mul_(ctx.scale), of_key.mul_(ctx.scale), of_value, None, None


def _blocks(spans: Sequence[Span]) -> list[Span]:
    return [block for span in spans for block in blocks_of(span)]


def _weights(query: Tensor, blocks: Sequence[Span]) -> list[Tensor]:
    """Room for what every block's queries give to its keys, in one piece: (heads · queries · keys,) each."""
    sizes = _sizes(query, blocks)
    return list(torch.split(query.new_empty(sum(sizes)), sizes))


def _one_by_one(query: Tensor, blocks: Sequence[Span]) -> list[Tensor]:
    """The same, each in the place of the one before."""
    sizes = _sizes(query, blocks)
    place = query.new_empty(max(sizes))
    return [place[:size] for size in sizes]


def _sizes(query: Tensor, blocks: Sequence[Span]) -> list[int]:
    return [query.shape[1] * block.queries * block.keys for block in blocks]


def _by_token(by_head: Tensor) -> Tensor:
    """Room of (1, heads, T, width); token by token in memory, as the products are that take it."""
    _, heads, tokens, width = by_head.shape
    return by_head.new_empty((1, tokens, heads, width)).transpose(1, 2)


def _by_block(by_head: Tensor, blocks: Sequence[Span], key_heads: int) -> tuple[Tensor, ...]:
    """Views of (heads, n, width), one a block: (key heads, heads that share it, queries, width)."""
    sizes = [block.queries for block in blocks]
    return torch.split(by_head.unflatten(0, (key_heads, -1)), sizes, dim=2)


def _joined(of_block: Tensor) -> Tensor:
    """(key heads, heads that share it × queries, width)."""
    return of_block.reshape(of_block.shape[0], -1, of_block.shape[3])


def _seen(by_head: Tensor, spans: Sequence[Span]) -> Iterator[Tensor]:
    """(key heads, keys, width) of each block: what its last query sees."""
    for span in spans:
        whole = by_head[:, span.first : span.stop]
        if span.seen_of_prompt:
            whole = torch.cat((by_head[:, span.prompt : span.prompt + span.seen_of_prompt], whole), dim=1)
        for block in blocks_of(span):
            yield whole[:, : block.keys]


def _add(by_head: Tensor, block: Span, part: Tensor) -> None:
    """Adds (key heads, keys, width) where the keys are."""
    prompt = block.seen_of_prompt
    if prompt:
        by_head[:, block.prompt : block.prompt + prompt].add_(part[:, :prompt])
    by_head[:, block.first : block.stop].add_(part[:, prompt:])


@lru_cache(maxsize=2 * QUERIES)
def _later(queries: int) -> Tensor:
    """(queries, queries): −∞ where a key comes after the query."""
    return torch.full((queries, queries), float("-inf")).triu(1)
