import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo.batches import (
    length_grouped_batches,
    optimizer_steps,
    pad_right,
    rows_at_once,
    sorted_batches,
)

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=90)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_padding_is_told_from_tokens_by_length() -> None:
    batch = pad_right([[5, 0], [7]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 0], [7, 0]]
    assert batch.real_mask.tolist() == [[True, True], [True, False]]


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
def test_a_pass_holds_every_row_once_and_only_its_last_batch_is_smaller(
    lengths: list[int], size: int, seed: int
) -> None:
    batches = length_grouped_batches(lengths, size, seeded(seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])


def test_rows_of_a_batch_are_of_similar_length() -> None:
    lengths = [1 + (7 * i) % 100 for i in range(128)]
    batches = length_grouped_batches(lengths, 16, seeded(0))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_passes_differ_by_seed_alone() -> None:
    lengths = list(range(1, 41))
    first = length_grouped_batches(lengths, 4, seeded(1))
    assert first == length_grouped_batches(lengths, 4, seeded(1))
    assert first != length_grouped_batches(lengths, 4, seeded(2))


@given(LENGTHS, st.integers(1, 20))
def test_sorted_batches_hold_every_row_once_longest_first(lengths: list[int], size: int) -> None:
    rows = [row for batch in sorted_batches(lengths, size) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "max_steps", "steps"),
    [(10, 4, 2, None, 6), (10, 4, 2, 5, 5), (10, 4, 2, 50, 6), (1, 16, 1, None, 1)],
)
def test_steps_of_a_training(rows: int, batch: int, epochs: int, max_steps: int | None, steps: int) -> None:
    assert optimizer_steps(rows, batch, epochs, max_steps) == steps


def test_fewer_rows_go_at_once_where_logits_are_large() -> None:
    assert rows_at_once(64, 512) == 32
    assert rows_at_once(1024, 150_000) == 1
