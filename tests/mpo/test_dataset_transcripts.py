"""Transcripts are split by columns as they are row by row, or the fast way declines."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.dataset_blocks import CONTENT_COLUMNS
from mpo.dataset_columns import parse_block
from mpo.dataset_rows import ASSISTANT, CanonicalRow, canonical_row
from mpo.dataset_transcripts import split_transcripts
from mpo.errors import BadRow
from tests.mpo.test_dataset_columns import assert_same, slow

HUMAN = "\n\nHuman: ä"


def upload(*rows: dict[str, Any]) -> bytes:
    return b"\n".join(
        json.dumps(row, ensure_ascii=number % 2 == 0).encode() for number, row in enumerate(rows)
    )


@pytest.mark.parametrize(
    "rows",
    [
        [{"chosen": f"{HUMAN}{ASSISTANT} a", "rejected": f"{HUMAN}{ASSISTANT} b"}],
        [{"prompt": None, "chosen": f"{HUMAN}{ASSISTANT} a", "rejected": f"{HUMAN}{ASSISTANT} b"}],
        [
            {"chosen": f"{HUMAN}{ASSISTANT} 😀{HUMAN}{ASSISTANT} x", "rejected": f"{HUMAN}{ASSISTANT} 😁"},
            {"chosen": f"{ASSISTANT}ü", "rejected": f"{ASSISTANT}ö", "id": "a", "margin": 1},
        ],
        # More openings behind the prompt than are guessed at, on one side, on the other, on both.
        [{"chosen": ASSISTANT * 9 + "é", "rejected": ASSISTANT + "è"}],
        [{"chosen": ASSISTANT + "é", "rejected": ASSISTANT * 9 + "è"}],
        [{"chosen": f"{ASSISTANT}é{ASSISTANT * 8}x", "rejected": f"{ASSISTANT}è{ASSISTANT * 8}x"}],
    ],
    ids=["one turn", "null prompts", "turns of one side", "many chosen", "many rejected", "many of both"],
)
def test_transcripts_go_the_fast_way(rows: list[dict[str, Any]]) -> None:
    data = upload(*rows)
    fast = parse_block(data, 1, "preference")
    assert fast is not None
    assert_same(fast, slow(data))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("no turn", "no turn"),
        (f"a{ASSISTANT} x", f"b{ASSISTANT} x"),
        (f"{ASSISTANT * 8} x", "b"),
        (f"{HUMAN}{ASSISTANT}", f"{HUMAN}{ASSISTANT} x"),
        (f"{HUMAN}{ASSISTANT} x", f"{HUMAN}{ASSISTANT} \u2003"),
        (None, f"{HUMAN}{ASSISTANT} x"),
        (5, 6),
    ],
)
def test_rows_that_are_refused_are_left_to_the_slow_way(chosen: Any, rejected: Any) -> None:
    good = {"chosen": f"{ASSISTANT} a", "rejected": f"{ASSISTANT} b"}
    data = upload(good, {"chosen": chosen, "rejected": rejected})
    assert parse_block(data, 1, "preference") is None
    assert [at for at, _ in slow(data).bad] == [1]


def test_rows_with_and_without_a_prompt_are_left_to_the_slow_way() -> None:
    row = {"chosen": f"{ASSISTANT} a", "rejected": f"{ASSISTANT} b"}
    data = upload(row, row | {"prompt": "p"})
    assert parse_block(data, 1, "preference") is None
    assert slow(data).table.column("prompt").to_pylist() == [ASSISTANT, "p"]


pieces = st.sampled_from([ASSISTANT, HUMAN, "\n\n", "Assistant:", "a", "b", "é", "è", "😀", "😁", " ", "\n"])
talks = st.lists(pieces, max_size=14).map("".join)
pairs = st.builds(
    lambda begun, *sides: tuple(begun + side for side in sides),
    talks.map(lambda text: text + ASSISTANT) | talks,
    talks,
    talks,
)


@settings(deadline=None, max_examples=100)
@given(st.lists(pairs, min_size=1, max_size=4), st.integers(0, 2))
def test_columns_of_transcripts_are_split_as_rows_are(rows: list[tuple[str, str]], skipped: int) -> None:
    columns = [pa.array(["x"] * skipped + [row[side] for row in rows])[skipped:] for side in (0, 1)]
    split = split_transcripts(*columns)
    expected: list[CanonicalRow | None] = []
    for chosen, rejected in rows:
        try:
            expected.append(canonical_row({"chosen": chosen, "rejected": rejected}, "preference", 1))
        except BadRow:
            expected.append(None)
    assert split or None in expected
    for at, row in enumerate(expected if split else []):
        found = tuple(split[name][at].as_py() for name in CONTENT_COLUMNS["preference"])
        # What is empty is refused by whoever looks at all columns.
        assert row.contents == found if row else any(not text or text.isspace() for text in found)


@settings(deadline=None, max_examples=30)
@given(st.lists(pairs, min_size=1, max_size=4))
def test_what_the_fast_way_takes_of_transcripts_the_slow_way_takes_alike(rows: list[tuple[str, str]]) -> None:
    data = upload(*({"chosen": chosen, "rejected": rejected} for chosen, rejected in rows))
    fast, by_row = parse_block(data, 1, "preference"), slow(data)
    assert (fast is None) == bool(by_row.bad)
    if fast is not None:
        assert_same(fast, by_row)
