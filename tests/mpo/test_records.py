import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo import records
from mpo.records import (
    Message,
    PreferencePair,
    count_rows,
    dump_content,
    load_content,
    pairs_of,
    read_pairs,
    read_prompts,
    read_rows,
    shared_prefix,
    stream_pairs,
    write_rows,
)

QUESTION = [{"role": "user", "content": "Ünicode “quotes”\n"}]


def some_pairs(count: int) -> list[PreferencePair]:
    return [PreferencePair(f"row-{n}", f"prompt {n}", f" a{n}", f" b{n}", margin=n / 4) for n in range(count)]


def test_pairs_come_back_as_they_were_written(tmp_path: Path) -> None:
    pairs = [
        PreferencePair("0", " verbatim \r\n", "a", "b", annotator="ann", margin=0.5, weight=2.0, source="s"),
        PreferencePair(
            "1", QUESTION, [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]
        ),
        PreferencePair("2", '[{"role": "user"}]', "text that looks like JSON", "[]"),
    ]
    assert write_rows(tmp_path / "p.parquet", pairs) == 3
    assert read_pairs(tmp_path / "p.parquet") == pairs
    assert [p.form for p in pairs] == ["text", "messages", "text"]
    assert [p.prompt for p in read_prompts(tmp_path / "p.parquet")] == [p.prompt for p in pairs]


def test_group_and_gap_come_back_where_the_pairs_have_them(tmp_path: Path) -> None:
    pairs = [PreferencePair(str(n), "p", "a", "b", group=n, gap=-0.25 * n) for n in range(3)]
    write_rows(tmp_path / "p.parquet", pairs)
    assert read_pairs(tmp_path / "p.parquet") == pairs


def test_many_rows_stream_in_order(tmp_path: Path) -> None:
    pairs = some_pairs(5000)
    write_rows(tmp_path / "p.parquet", iter(pairs))
    assert count_rows(tmp_path / "p.parquet") == 5000
    assert next(stream_pairs(tmp_path / "p.parquet")) == pairs[0]
    assert read_pairs(tmp_path / "p.parquet") == pairs


def test_rows_are_read_by_number_in_the_order_asked_for(tmp_path: Path) -> None:
    pairs = some_pairs(5000)
    write_rows(tmp_path / "p.parquet", pairs)
    found = pairs_of(read_rows(tmp_path / "p.parquet", [4999, 3, 2048, 3]))
    assert found == [pairs[4999], pairs[3], pairs[2048], pairs[3]]
    assert read_rows(tmp_path / "p.parquet", []).num_rows == 0


def test_a_file_may_hold_no_pair(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "p.parquet", []) == 0
    assert read_pairs(tmp_path / "p.parquet") == []


@given(st.text(max_size=30), st.text(max_size=10), st.text(max_size=10))
def test_shared_prefix_is_the_longest(start: str, left: str, right: str) -> None:
    found = shared_prefix(start + left, start + right)
    assert (start + left).startswith(found)
    assert (start + right).startswith(found)
    assert found.startswith(start)
    rest, other = (start + left)[len(found) :], (start + right)[len(found) :]
    assert not rest or not other or rest[0] != other[0]


def test_batches_of_long_rows_have_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.parquet"
    write_rows(file, (PreferencePair(str(i), "p", f"{i} " * 500, "r") for i in range(100)))
    whole = [row for batch in records.stream_batches(file) for row in batch.to_pylist()]
    monkeypatch.setattr(records, "BATCH_BYTES", 10_000)
    batches = list(records.stream_batches(file))
    assert max(batch.num_rows for batch in batches) < 10
    assert [row for batch in batches for row in batch.to_pylist()] == whole


@given(st.lists(st.builds(Message, role=st.text(), content=st.text())))
def test_messages_are_written_as_json_writes_them(messages: list[Message]) -> None:
    written = dump_content(messages)
    assert written == json.dumps(messages, ensure_ascii=False)
    assert load_content(written, "messages") == messages
