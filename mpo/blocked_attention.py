"""Causal attention of a packed row on a CPU, by matrix products over blocks of queries.

torch's kernel for CPUs takes a few queries a product, and sequences of pairs are some hundred tokens long.
Here the queries of a block, those of all heads that share keys, are one product with the keys up to the last
of them. The attention's weights are kept for the backward pass, so that no exponential is computed twice, as
long as they are little memory.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpo.packed_rows import PackedRow

QUERIES = 96
"""Tokens of a block, about: of fewer, products are too small; of more, too much of them is masked."""
MEAN_KEYS = 256
"""Keys that a query of the row may see in the mean: so many numbers a token and head are kept of a layer."""


class Block(NamedTuple):
    """Queries of a row from `start` to `stop`; they see `prompt`, and from `first` on each up to itself."""

    start: int
    stop: int
    prompt: slice
    first: int

    @property
    def queries(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def keys(self) -> int:
        """That the last of the queries sees."""
        return self.seen_of_prompt + self.stop - self.first

    @property
    def seen_of_prompt(self) -> int:
        """Tokens of the prompt, where it stands apart from the queries."""
        tokens: int = self.prompt.stop - self.prompt.start
        return tokens


def blocks_of(row: PackedRow) -> list[Block]:
    """The row's queries in blocks, each of one sequence."""
    return [block for sequence in _sequences(row) for block in _even_blocks(*sequence)]


def _sequences(row: PackedRow) -> Iterator[tuple[int, int, slice]]:
    """Of each prompt with its first response, and of each further response: where it begins and ends, and
    which tokens before that it sees."""
    start = 0
    for prompt, family in zip(row.prompts, row.blocks, strict=True):
        seen, shared = slice(start, start), slice(start, start + prompt)
        for size in family:
            yield start, start + size, seen
            start, seen = start + size, shared


def _even_blocks(start: int, stop: int, prompt: slice) -> Iterator[Block]:
    count = max(1, round((stop - start) / QUERIES))
    edges = [start + (stop - start) * part // count for part in range(count + 1)]
    return (Block(begin, end, prompt, start) for begin, end in pairwise(edges))


def takes_blocks(query: Tensor, blocks: Sequence[Block], window: int | None) -> bool:
    """Whether the row's attention is faster so, within a memory that is small beside the layer's own.

    window: keys that a query sees at most, of which blocks know nothing; None = all before it.
    """
    kept = sum(block.queries * block.keys for block in blocks)
    short = kept <= MEAN_KEYS * query.shape[2]
    whole = window is None or max(block.keys for block in blocks) <= window
    return query.device.type == "cpu" and query.dtype == torch.float32 and short and whole


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float | None
) -> Tensor:
    """query: (1, heads, T, width); key, value: (1, key heads, T, width). Gives (1, T, heads, width).

    blocks: they cover the row in its order. scale: of the products; None = 1/√width.
    """
    scale = query.shape[3] ** -0.5 if scale is None else scale
    found: Tensor = BlockedAttention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return found


class BlockedAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) V under the blocks' mask (Vaswani et al. 2017, equation 1)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float
    ) -> Tensor:
        """(1, T, heads, width)."""
        _, heads, tokens, _ = query.shape
        result = query.new_empty((1, tokens, heads, value.shape[3]))
        kept = any(ctx.needs_input_grad)
        weights = _weights(query, blocks) if kept else _one_by_one(query, blocks)
        for block, weight in zip(blocks, weights, strict=True):
            seen, offered = _seen(key[0], block), _seen(value[0], block)
            asked, weight = _grouped(query[0], block, len(seen)), weight.view(len(seen), -1, block.keys)
            torch.baddbmm(weight, asked, seen.transpose(1, 2), beta=0, alpha=scale, out=weight)
            own = weight.view(heads, -1, block.keys)[..., block.keys - block.queries :]
            own += _later(block.queries)
            torch.softmax(weight, -1, out=weight)
            answers = torch.bmm(weight, offered).view(heads, -1, value.shape[3])
            result[0, block.start : block.stop] = answers.transpose(0, 1)
        if kept:
            ctx.save_for_backward(query, key, value, *weights)
        ctx.blocks, ctx.scale = blocks, scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Of query, key and value."""
        query, key, value, *weights = ctx.saved_tensors
        of_result = gradients[0][0].transpose(0, 1)
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        for block, weight, place in zip(ctx.blocks, weights, _one_by_one(query, ctx.blocks), strict=True):
            seen, offered = _seen(key[0], block), _seen(value[0], block)
            asked, wanted = _grouped(query[0], block, len(seen)), _grouped(of_result, block, len(seen))
            weight, place = weight.view(len(seen), -1, block.keys), place.view(len(seen), -1, block.keys)
            torch.bmm(wanted, offered.transpose(1, 2), out=place)
            torch._softmax_backward_data(place, weight, -1, weight.dtype, grad_input=place)
            of_asked = torch.bmm(place, seen).mul_(ctx.scale)
            of_query[0, :, block.start : block.stop] = of_asked.view(query.shape[1], -1, query.shape[3])
            _add(of_key[0], block, torch.bmm(place.transpose(1, 2), asked), ctx.scale)
            _add(of_value[0], block, torch.bmm(weight.transpose(1, 2), wanted))
        return of_query, of_key, of_value, None, None


def _weights(query: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """Room for what every block's queries give to its keys, in one piece: (heads · queries · keys,) each."""
    sizes = _sizes(query, blocks)
    return list(torch.split(query.new_empty(sum(sizes)), sizes))


def _one_by_one(query: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """The same, each in the place of the one before."""
    sizes = _sizes(query, blocks)
    place = query.new_empty(max(sizes))
    return [place[:size] for size in sizes]


def _sizes(query: Tensor, blocks: Sequence[Block]) -> list[int]:
    return [query.shape[1] * block.queries * block.keys for block in blocks]


def _grouped(by_head: Tensor, block: Block, key_heads: int) -> Tensor:
    """(key heads, heads that share it × queries, width) of (heads, T, width)."""
    return by_head[:, block.start : block.stop].reshape(key_heads, -1, by_head.shape[2])


def _seen(by_head: Tensor, block: Block) -> Tensor:
    """(key heads, keys, width): what the block's last query sees."""
    own = by_head[:, block.first : block.stop]
    if not block.seen_of_prompt:
        return own
    return torch.cat((by_head[:, block.prompt], own), dim=1)


def _add(by_head: Tensor, block: Block, part: Tensor, times: float = 1.0) -> None:
    """Adds (key heads, keys, width) where the keys are."""
    prompt = block.seen_of_prompt
    if prompt:
        by_head[:, block.prompt].add_(part[:, :prompt], alpha=times)
    by_head[:, block.first : block.stop].add_(part[:, prompt:], alpha=times)


@lru_cache(maxsize=2 * QUERIES)
def _later(queries: int) -> Tensor:
    """(queries, queries): −∞ where a key comes after the query."""
    return torch.full((queries, queries), float("-inf")).triu(1)
