import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo.packed_rows import Family, PackedRow, passes_of, tokens_at_once

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=5)
FAMILIES = st.lists(
    st.builds(Family, IDS, st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)


def test_a_prompt_stands_once_and_both_responses_begin_where_it_ends() -> None:
    row = PackedRow.of([Family([5, 6], [[7, 8], [9]]), Family([1], [[2]])])
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 1, 2]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert (row.prompts, row.blocks) == ([2, 1], [[4, 1], [2]])
    assert row.before.tolist() == [1, 2, 1, 5]
    assert row.targets.tolist() == [7, 8, 9, 2]
    assert row.owners.tolist() == [0, 0, 1, 2]
    assert row.ends.tolist() == [3, 4, 6]


@given(FAMILIES)
def test_every_response_token_is_predicted_by_the_token_before_it(families: list[Family]) -> None:
    row = PackedRow.of(families)
    ids, positions = row.input_ids[0], row.position_ids[0]
    plain = [[*prompt, *response] for prompt, responses in families for response in responses]
    lengths = [len(response) for _, responses in families for response in responses]
    at = 0
    for sequence, length in zip(plain, lengths, strict=True):
        start = len(sequence) - length
        for place in range(start, len(sequence)):
            assert int(row.targets[at]) == sequence[place]
            assert int(ids[row.before[at]]) == sequence[place - 1]
            assert int(positions[row.before[at]]) == place - 1
            at += 1
    assert at == len(row.targets)
    assert [int(ids[end]) for end in row.ends] == [sequence[-1] for sequence in plain]
    assert row.input_ids.shape[1] == sum(family.tokens for family in families)


def test_an_empty_response_ends_with_its_prompt_and_has_nothing_to_predict() -> None:
    row = PackedRow.of([Family([4, 5], [[], [6]])])
    assert row.ends.tolist() == [1, 2]
    assert row.sums(torch.tensor([3.0])).tolist() == [0.0, 3.0]


def test_numbers_of_tokens_are_added_up_by_response() -> None:
    row = PackedRow.of([Family([1], [[2, 3], [4]]), Family([1], [[5]])])
    assert row.sums(torch.tensor([1.0, 2.0, 4.0, 8.0])).tolist() == [3.0, 4.0, 8.0]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 64))
def test_passes_hold_every_row_once_in_order_within_the_tokens(tokens: list[int], at_once: int) -> None:
    rows = list(range(len(tokens)))
    passes = list(passes_of(rows, tokens, at_once))
    assert [row for part in passes for row in part] == rows
    assert all(len(part) == 1 or sum(tokens[row] for row in part) <= at_once for part in passes)


@pytest.mark.parametrize(("rows", "sizes"), [(8, [8]), (9, [5, 4]), (24, [8, 8, 8])])
def test_passes_are_of_nearly_equal_size(rows: int, sizes: list[int]) -> None:
    assert [len(part) for part in passes_of(range(rows), [10] * rows, 80)] == sizes


def test_logits_bound_the_tokens_of_a_pass() -> None:
    cpu = torch.device("cpu")
    assert tokens_at_once(cpu, 2**22) == 2**6
    assert tokens_at_once(cpu, 2**40) == 1
    assert tokens_at_once(cpu) < tokens_at_once(torch.device("cuda"))
