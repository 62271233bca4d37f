"""Attention by blocks of queries: the same numbers and gradients as torch's own, response by response."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mpo import packed_attention
from mpo.blocked_attention import MEAN_KEYS, QUERIES, blocked_attention, blocks_of, takes_blocks
from mpo.packed_rows import Family, PackedRow

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
    assert takes_blocks(tensors(row)[0], blocks_of(row), None)
    by_blocks = attention_and_gradients(row, **settings)
    monkeypatch.setattr(packed_attention, "takes_blocks", lambda *_: False)
    assert_close(by_blocks, attention_and_gradients(row, **settings), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    row = row_of(SHAPES["short"])
    given = tensors(row, torch.float64)
    blocks = blocks_of(row)
    assert torch.autograd.gradcheck(lambda q, k, v: blocked_attention(q, k, v, blocks, None), given)


def test_without_gradients_it_gives_the_same_to_the_bit() -> None:
    row = row_of(SHAPES["several blocks"])
    given = tensors(row)
    trained = blocked_attention(*given, blocks_of(row), None)
    with torch.no_grad():
        assert torch.equal(blocked_attention(*given, blocks_of(row), None), trained)


def test_blocks_cover_the_row_in_its_order() -> None:
    row = row_of(SHAPES["several blocks"])
    blocks = blocks_of(row)
    assert [block.stop for block in blocks[:-1]] == [block.start for block in blocks[1:]]
    assert blocks[-1].stop == row.input_ids.shape[1]
    assert max(block.queries for block in blocks) <= 1.5 * QUERIES


def test_long_rows_windows_and_other_types_are_left_to_torch() -> None:
    short, long = row_of(SHAPES["short"]), row_of([(2 * MEAN_KEYS, [10])])
    query = tensors(short)[0]
    assert takes_blocks(query, blocks_of(short), None)
    assert not takes_blocks(query.bfloat16(), blocks_of(short), None)
    assert not takes_blocks(query.to("meta"), blocks_of(short), None)
    assert not takes_blocks(query, blocks_of(short), window=7)
    assert takes_blocks(query, blocks_of(short), window=9)
    assert not takes_blocks(tensors(long)[0], blocks_of(long), None), "its weights would be much memory"
