"""The fast way and the slow way through JSON Lines give the same blocks, or the fast one declines."""

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo import dataset_lines
from mpo.dataset_blocks import Block, block_of
from mpo.dataset_columns import parse_block
from mpo.dataset_files import validate_file
from mpo.dataset_lines import _items
from mpo.dataset_rows import DatasetKind
from mpo.errors import InvalidDataset
from mpo.records import stream_batches

PLAIN = b'{"prompt": "p", "chosen": "c", "rejected": "r"}'


def slow(data: bytes, kind: DatasetKind = "preference") -> Block:
    return block_of(list(_items(data, 1, kind)), kind)


def assert_same(fast: Block, by_row: Block) -> None:
    assert by_row.bad == []
    assert fast.rows == by_row.rows
    assert fast.table.equals(by_row.table)
    assert fast.table.schema == by_row.table.schema
    assert np.array_equal(fast.lines, by_row.lines)
    assert np.array_equal(fast.offsets, by_row.offsets)
    assert np.array_equal(fast.keys, by_row.keys)
    for ours, theirs in zip(fast.lengths, by_row.lengths, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": " \n ü", "chosen": "\u3000ä\u3000", "rejected": "😀"},
        {"id": "a", "annotator": "x", "source": "y", "margin": -1.5, "weight": 0},
        {"id": 5, "annotator": -7, "margin": None, "weight": 0.25, "source": None},
        {"other": "x", "score": 1, "is_new": True, "nothing": None},
    ],
)
def test_plain_rows_go_the_fast_way(row: dict[str, Any]) -> None:
    whole = {"prompt": "p", "chosen": "c", "rejected": "r"} | row
    for ascii_only in (True, False):
        text = json.dumps(whole, ensure_ascii=ascii_only).encode()
        data = text + b"\r\n" + text + b"\n"
        fast = parse_block(data, 1, "preference")
        assert fast is not None
        assert_same(fast, slow(data))


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + PLAIN + b"\n",
        PLAIN + b"\n\n" + PLAIN,
        b'{"prompt": "p", "chosen": "c",\n"rejected": "r"}\n',
        b'{"prompt": "p", "chosen": "c", "rejected": "r"} {"prompt": "p",\n"chosen": "c", "rejected": "r"}\n',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "chosen": "d"}',
        b'{"prompt": "p", "chosen": "c\xff", "rejected": "r"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "x": "\\ud800"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "x": "\\u0000"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "x": NaN}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "x": ' + b"9" * 5000 + b"}",
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "x": {"y": 1}}',
        b'{"prompt": "p", "chosen": "\\u2003", "rejected": "r"}',
        b'{"prompt": "p", "chosen": "", "rejected": "r"}',
        b'{"prompt": null, "chosen": "c", "rejected": "r"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "weight": -1}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "margin": 1e999}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "id": 1.0}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "id": ""}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "id": "' + b"i" * 1001 + b'"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "preferred_output": "x"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "\\ud800": "x"}',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "\\u0000": "x"}',
        # Every row of the block would take memory for each of these columns.
        json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"} | {str(n): 1 for n in range(64)}).encode(),
        b'[{"prompt": "p", "chosen": "c", "rejected": "r"}]',
        b"\n",
        b"",
    ],
)
def test_the_fast_way_declines_what_takes_a_closer_look(data: bytes) -> None:
    assert parse_block(data, 1, "preference") is None


texts = st.text(max_size=6) | st.sampled_from(["\0", "\ud800", " ", "\x1c", "\u2003", "ä", '"', "\\", "}\n{"])
scalars = (
    texts
    | st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.just(10**310)
    | st.just([])
)
options = st.dictionaries(
    st.sampled_from(["id", "annotator", "source", "margin", "weight", "x", "preferred_output", "prompt"]),
    scalars,
)
filled = st.fixed_dictionaries(
    {name: texts | st.just("word") for name in ("prompt", "chosen", "rejected", "text")}
)
rows = st.builds(lambda row, more: row | more, filled, options | st.just({}))
lines = st.builds(
    lambda row, ascii_only: json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass"),
    rows,
    st.booleans(),
)
broken = lines.flatmap(
    lambda line: st.builds(
        lambda at, piece: line[:at] + piece + line[at:],
        st.integers(0, len(line)),
        st.sampled_from(
            [b"", b"\n", b"}", b"{", b",", b"\xff", b"\r", b'"', b"}\n{", b"\\", b" ", b"\0", b"}{"]
        ),
    )
)
files = st.builds(
    bytes.join,
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b""]),
    st.lists(st.just(PLAIN) | lines | broken, max_size=5),
)
kinds = st.sampled_from(["preference", "prompts", "text"])


@settings(deadline=None, max_examples=150)
@given(files, kinds)
def test_what_the_fast_way_takes_the_slow_way_takes_alike(data: bytes, kind: DatasetKind) -> None:
    fast = parse_block(data, 1, kind)
    if fast is not None:
        assert_same(fast, slow(data, kind))


def outcome(content: bytes, kind: DatasetKind) -> object:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "upload", Path(folder) / "rows.parquet"
        source.write_bytes(content)
        try:
            report = validate_file(source, target, max_bad_rows=2, kind=kind)
        except InvalidDataset as error:
            return error.detail, error.facts["report"]
        return report, [row for batch in stream_batches(target) for row in batch.to_pylist()]


@settings(deadline=None, max_examples=30)
@given(files, kinds)
def test_a_file_comes_out_the_same_with_and_without_the_fast_way(content: bytes, kind: DatasetKind) -> None:
    both = outcome(content, kind)
    with mock.patch.object(dataset_lines, "parse_block", return_value=None):
        assert outcome(content, kind) == both


def test_threads_keep_the_order_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\n".join(
        json.dumps({"prompt": f"p{n}", "chosen": "c", "rejected": "r" if n % 97 else ""}).encode()
        for n in range(3000)
    )
    (tmp_path / "upload").write_bytes(content)
    alone = validate_file(tmp_path / "upload", tmp_path / "alone.parquet", max_bad_rows=99)
    monkeypatch.setattr(dataset_lines, "THREADED_BYTES", 1)
    monkeypatch.setattr("mpo.dataset_containers.CHUNK_BYTES", 2000)
    assert validate_file(tmp_path / "upload", tmp_path / "many.parquet", max_bad_rows=99) == alone
    found, expected = (
        [row for batch in stream_batches(tmp_path / name) for row in batch.to_pylist()]
        for name in ("many.parquet", "alone.parquet")
    )
    assert found == expected
    assert (alone.rows, alone.bad_rows) == (2969, 31)
