"""Attention by blocks of queries: the same numbers and gradients as torch's own, response by response."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mpo import packed_attention
from mpo.blocked_attention import MEAN_KEYS, QUERIES, blocked_attention, blocks_of, takes_blocks
from mpo.packed_rows import Family, PackedRow, narrowed

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
SHAPES = {
    "short": [(5, [3, 2]), (1, [1, 4]), (7, [2])],
    "several blocks": [(QUERIES, [2 * QUERIES, 1]), (30, [QUERIES // 2, 3 * QUERIES])],
    "an empty response": [(4, [3, 0, 2])],
}


def row_of(families: Sequence[tuple[int, Sequence[int]]]) -> PackedRow:
    return PackedRow.of([Family([1] * prompt, [[2] * size for size in sizes]) for prompt, sizes in families])


def tensors(row: PackedRow, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as a model's layers give them: (1, heads, T, width) over (T, heads, width)."""
    torch.manual_seed(0)
    query, key, value = (
        torch.randn((1, row.input_ids.shape[1], heads, WIDTH), dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


def attention_and_gradients(row: PackedRow, **settings: Any) -> tuple[Tensor, list[Tensor]]:
    given = tensors(row)
    result, _ = packed_attention.packed_attention(nn.Module(), *given, None, packed=row, **settings)
    torch.manual_seed(1)
    return result, list(torch.autograd.grad((result * torch.randn(result.shape)).sum(), given))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"scaling": 0.7}], ids=["1/√width", "a scale"])
def test_blocks_come_to_what_torch_comes_to(
    shape: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = row_of(SHAPES[shape])
    assert takes_blocks(tensors(row)[1], row.spans, None)
    by_blocks = attention_and_gradients(row, **settings)
    monkeypatch.setattr(packed_attention, "takes_blocks", lambda *_: False)
    assert_close(by_blocks, attention_and_gradients(row, **settings), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    row = row_of(SHAPES["short"])
    given = tensors(row, torch.float64)
    spans = row.spans
    assert torch.autograd.gradcheck(lambda q, k, v: blocked_attention(q, k, v, spans, None), given)


def test_without_gradients_it_gives_the_same_to_the_bit() -> None:
    row = row_of(SHAPES["several blocks"])
    given = tensors(row)
    trained = blocked_attention(*given, row.spans, None)
    with torch.no_grad():
        assert torch.equal(blocked_attention(*given, row.spans, None), trained)


PLACES = {"ends": [7, 9, 11, 15, 24], "parts": [3, 4, 6, 9, 12, 13, 14, 20]}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("by_blocks", [True, False])
def test_some_of_the_queries_come_to_what_they_come_to_among_all(
    places: list[int], by_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "takes_blocks", lambda *_: by_blocks)
    row = row_of(SHAPES["short"])
    spans = narrowed(row.spans, places)
    kept = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    assert set(places) <= set(kept.tolist())
    found, wanted = list[tuple[Tensor, ...]](), torch.randn((1, len(kept), HEADS, WIDTH))
    for queries in (spans, None):
        query, key, value = tensors(row)
        asked = query if queries is None else query[:, :, kept]
        result, _ = packed_attention.packed_attention(
            nn.Module(), asked, key, value, None, packed=row, queries=queries
        )
        result = result[:, kept] if queries is None else result
        found.append((result, *torch.autograd.grad((result * wanted).sum(), (query, key, value))))
    assert_close(*found, rtol=1e-5, atol=1e-5)


def test_blocks_cover_the_row_in_its_order() -> None:
    row = row_of(SHAPES["several blocks"])
    blocks = [block for span in row.spans for block in blocks_of(span)]
    assert [block.stop for block in blocks[:-1]] == [block.start for block in blocks[1:]]
    assert blocks[-1].stop == row.input_ids.shape[1]
    assert max(block.queries for block in blocks) <= 1.5 * QUERIES


def test_long_rows_windows_and_other_types_are_left_to_torch() -> None:
    short, long = row_of(SHAPES["short"]), row_of([(2 * MEAN_KEYS, [10])])
    key = tensors(short)[1]
    assert takes_blocks(key, short.spans, None)
    assert not takes_blocks(key.bfloat16(), short.spans, None)
    assert not takes_blocks(key.to("meta"), short.spans, None)
    assert not takes_blocks(key, short.spans, window=7)
    assert takes_blocks(key, short.spans, window=9)
    assert not takes_blocks(tensors(long)[1], long.spans, None), "its weights would be much memory"
