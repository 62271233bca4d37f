import gzip
import json
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo import dataset_blocks, dataset_containers, dataset_files, dataset_lines
from mpo.dataset_files import validate_file
from mpo.dataset_lines import parse_line
from mpo.dataset_report import DatasetReport
from mpo.errors import BadRow, InvalidDataset
from mpo.records import PreferencePair, read_pairs, read_prompts, read_texts

PLAIN = {"prompt": "p", "chosen": "c", "rejected": "r"}


def line(**changed: Any) -> bytes:
    return json.dumps(PLAIN | changed).encode()


def validate(tmp_path: Path, content: bytes, **options: Any) -> tuple[DatasetReport, list[PreferencePair]]:
    (tmp_path / "upload").write_bytes(content)
    report = validate_file(tmp_path / "upload", tmp_path / "rows.parquet", **options)
    return report, read_pairs(tmp_path / "rows.parquet")


def refused(tmp_path: Path, content: bytes, **options: Any) -> InvalidDataset:
    with pytest.raises(InvalidDataset) as caught:
        validate(tmp_path, content, **options)
    assert not (tmp_path / "rows.parquet").exists()
    return caught.value


def only_bad_row(tmp_path: Path, raw: bytes) -> tuple[int, int | None, str]:
    """What the report says of a line that stands third in the file, after a blank one."""
    report, pairs = validate(tmp_path, line() + b"\n\n" + raw + b"\n" + line(), max_bad_rows=1)
    assert [pair.id for pair in pairs] == ["0", "2"]
    (bad,) = report.bad
    return bad.line, bad.column, bad.message


def test_rows_become_canonical_and_are_numbered_from_zero(tmp_path: Path) -> None:
    report, pairs = validate(tmp_path, line() + b"\n" + line(chosen=" c2", source="s"))
    assert pairs == [PreferencePair("0", "p", "c", "r"), PreferencePair("1", "p", " c2", "r", source="s")]
    assert (report.rows, report.bad_rows, report.format, report.complete) == (2, 0, "jsonl", True)


def test_bytes_decide_over_the_media_type(tmp_path: Path) -> None:
    packed = gzip.compress(line() + b"\n")
    report, pairs = validate(tmp_path, packed, media_type="application/jsonl")
    assert (report.format, len(pairs)) == ("jsonl.gz", 1)
    report, pairs = validate(tmp_path, line() + b"\n", media_type="application/gzip")
    assert (report.format, len(pairs)) == ("jsonl", 1)
    report, pairs = validate(tmp_path, packed + gzip.compress(line()))
    assert len(pairs) == 2


def test_byte_order_mark_and_carriage_returns_are_no_content(tmp_path: Path) -> None:
    _, pairs = validate(tmp_path, b"\xef\xbb\xbf" + line() + b"\r\n\r\n" + line() + b"\r\n")
    assert [pair.id for pair in pairs] == ["0", "1"]


def test_of_duplicate_keys_the_last_counts(tmp_path: Path) -> None:
    _, pairs = validate(tmp_path, b'{"prompt":"p","chosen":"first","rejected":"r","chosen":"last"}')
    assert pairs[0].chosen == "last"


@pytest.mark.parametrize(
    ("raw", "column", "message"),
    [
        (b'{"prompt": "p",, }', 16, "not JSON"),
        (b'{"prompt": "p"', 15, "not JSON"),
        (b'{"prompt": "\xff"}', 13, "not UTF-8"),
        (b'{"prompt": NaN}', None, "NaN"),
        (b'{"prompt": -Infinity}', None, "-Infinity"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", None, "too many digits"),
        (b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", None, "nested too deep"),
        (b'{"prompt": "\\u0000", "chosen": "c", "rejected": "r"}', None, "NUL"),
        (b'{"prompt": "p", "chosen": "\\ud83d", "rejected": "r"}', None, "surrogate"),
        (b'{"prompt": "p", "chosen": "c", "rejected": "r", "x": [{"\\udc00": 1}]}', None, "surrogate"),
        (b'{"prompt": "\0"}', 13, "not JSON"),
        (b"[1, 2]", None, "JSON object"),
        (b"null", None, "JSON object"),
        (b'{"prompt": "p"}', None, "chosen"),
    ],
)
def test_bad_row_is_reported_by_line_and_column(
    tmp_path: Path, raw: bytes, column: int | None, message: str
) -> None:
    found_line, found_column, found_message = only_bad_row(tmp_path, raw)
    assert (found_line, found_column) == (3, column)
    assert message in found_message


def test_escaped_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    _, pairs = validate(
        tmp_path, b'{"prompt": "\\ud83d\\ude00 \\u00e4", "chosen": "c", "rejected": "\\\\u0000"}'
    )
    assert (pairs[0].prompt, pairs[0].rejected) == ("😀 ä", "\\u0000")


def test_too_long_a_line_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_lines, "MAX_LINE_BYTES", 5000)
    monkeypatch.setattr(dataset_containers, "CHUNK_BYTES", 1000)
    found_line, _, message = only_bad_row(tmp_path, line(prompt="x" * 50_000))
    assert (found_line, "longer than 5000 bytes" in message) == (3, True)
    report, _ = validate(tmp_path, line() + b"\n" + line(prompt="x" * 9_000), max_bad_rows=1)
    assert (report.rows, report.bad[0].line) == (1, 2)


def test_lines_are_found_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\n".join(line(prompt=f"ü {n}") for n in range(30)) + b"\n  \n"
    for size in (1, 7, 64):
        monkeypatch.setattr(dataset_containers, "CHUNK_BYTES", size)
        _, pairs = validate(tmp_path, content)
        assert [pair.prompt for pair in pairs] == [f"ü {n}" for n in range(30)]


def test_rows_are_the_same_whatever_the_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\n".join(line(chosen=f"c{n % 9}", annotator=f"a{n % 3}") for n in range(100))
    whole = validate(tmp_path, content)
    monkeypatch.setattr(dataset_blocks, "GROUP_ROWS", 7)
    assert validate(tmp_path, content) == whole


def test_bad_rows_within_the_allowance_are_counted_and_skipped(tmp_path: Path) -> None:
    report, pairs = validate(tmp_path, line() + b"\n{}\n" + line() + b"\nx\n", max_bad_rows=2)
    assert (report.rows, report.bad_rows) == (2, 2)
    assert [pair.id for pair in pairs] == ["0", "2"]


def test_more_bad_rows_than_allowed_make_the_file_invalid(tmp_path: Path) -> None:
    error = refused(tmp_path, line() + b"\n{}\n" * 150, max_bad_rows=149)
    report = error.facts["report"]
    assert isinstance(report, DatasetReport)
    assert (report.rows, report.bad_rows, len(report.bad)) == (1, 150, 100)
    assert "150 bad row(s), 149 allowed. The first, line 2: " in error.detail
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("content", [b"", b"\n\n \n", gzip.compress(b"", mtime=0), b"\xef\xbb\xbf"])
def test_file_without_a_row_is_invalid(tmp_path: Path, content: bytes) -> None:
    assert "no row" in refused(tmp_path, content).detail


def test_file_of_bad_rows_alone_is_invalid_whatever_is_allowed(tmp_path: Path) -> None:
    assert "no row" in refused(tmp_path, b"x\ny\n", max_bad_rows=10).detail


def test_reading_stops_after_very_many_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_files, "STOP_AFTER_BAD_ROWS", 50)
    error = refused(tmp_path, b"{}\n" * 1000)
    assert "51 or more bad row(s)" in error.detail


def test_gzip_that_is_cut_off_or_damaged_is_invalid(tmp_path: Path) -> None:
    packed = gzip.compress(b"\n".join(line(prompt=f"{n} {hash(str(n))}") for n in range(2000)))
    assert "cut off" in refused(tmp_path, packed[: len(packed) // 2]).detail
    assert "cut off" in refused(tmp_path, packed[:-3]).detail
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0xFF
    assert "damaged" in refused(tmp_path, bytes(damaged)).detail
    assert "damaged" in refused(tmp_path, packed + b"trailing").detail


def test_gzip_that_unpacks_to_too_much_is_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_containers, "MAX_UNPACKED_BYTES", 3_000_000)
    assert "unpacks to more than" in refused(tmp_path, gzip.compress(b"\n" * 8_000_000)).detail


def test_parquet_is_refused_by_name(tmp_path: Path) -> None:
    assert "Parquet" in refused(tmp_path, b"PAR1\x00\x00PAR1").detail


def test_uploaded_ids_are_kept_and_must_differ(tmp_path: Path) -> None:
    content = b"\n".join(
        [line(id="a"), line(id=5), line(), line(id="a"), line(id="2"), line(id="6"), line(), line()]
    )
    report, pairs = validate(tmp_path, content, max_bad_rows=3)
    assert [pair.id for pair in pairs] == ["a", "5", "2", "6", "7"]
    assert [bad.line for bad in report.bad] == [4, 5, 7]
    assert "repeats" in report.bad[0].message


def test_report_counts_what_a_person_should_know(tmp_path: Path) -> None:
    rows = [
        line(chosen="long", rejected="s", annotator="x"),
        line(chosen="long", rejected="s", annotator="y"),
        line(chosen="s", rejected="long", annotator="x"),
        line(chosen="same", rejected="same"),
        line(prompt="other", chosen="s", rejected="long"),
    ]
    report, _ = validate(tmp_path, b"\n".join(rows))
    assert (report.duplicates, report.conflicting, report.identical) == (1, 3, 1)
    assert report.length_baseline_accuracy == (2 + 0.5) / 5
    assert report.annotators == {"x": 2, "y": 1}
    assert report.lengths["prompt"] == pytest.approx(
        {"0": 1, "0.05": 1, "0.25": 1, "0.5": 1, "0.75": 1, "0.95": 4.2, "1": 5}
    )
    assert json.loads(json.dumps(report.to_json()))["rows"] == 5


def test_lengths_of_messages_are_those_of_their_contents(tmp_path: Path) -> None:
    ask, answer = [{"role": "user", "content": "abc"}], [{"role": "assistant", "content": "de"}]
    report, pairs = validate(tmp_path, line(prompt=ask, chosen=answer, rejected=answer))
    assert pairs[0].prompt == ask
    assert (report.lengths["prompt"]["0.5"], report.lengths["chosen"]["0.5"]) == (3, 2)


def test_prompts_and_texts_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b'{"prompt": "a"}\n{"prompt": "b", "id": "x"}\n')
    report = validate_file(tmp_path / "upload", tmp_path / "rows.parquet", kind="prompts")
    assert [(p.id, p.prompt) for p in read_prompts(tmp_path / "rows.parquet")] == [("0", "a"), ("x", "b")]
    assert (report.kind, report.length_baseline_accuracy) == ("prompts", None)
    (tmp_path / "upload").write_bytes(b'{"text": "a"}\n{"text": "a"}\n')
    report = validate_file(tmp_path / "upload", tmp_path / "rows.parquet", kind="text")
    assert [(t.id, t.text) for t in read_texts(tmp_path / "rows.parquet")] == [("0", "a"), ("1", "a")]
    assert report.duplicates == 1


def test_progress_tells_bytes_read_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_containers, "CHUNK_BYTES", 100)
    told: list[tuple[int, int]] = []
    content = b"\n".join([line()] * 20)
    validate(tmp_path, content, on_progress=lambda read, size: told.append((read, size)))
    assert told == sorted(told)
    assert told[-1] == (len(content), len(content))


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_containers, "CHUNK_BYTES", 2**16)
    monkeypatch.setattr(dataset_blocks, "GROUP_BYTES", 2**18)
    block = b"\n".join(line(prompt=f"{n} " * 200) for n in range(500)) + b"\n"
    peaks = []
    for repeats in (2, 20):
        (tmp_path / "upload").write_bytes(gzip.compress(block * repeats, 1))
        tracemalloc.start()
        validate_file(tmp_path / "upload", tmp_path / "rows.parquet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + len(block)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_line_is_a_row_or_a_bad_row(raw: bytes) -> None:
    with suppress(BadRow):
        assert isinstance(parse_line(raw, 1), dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner)
    ),
    max_leaves=6,
)
names = st.sampled_from(
    ["prompt", "chosen", "rejected", "id", "margin", "weight", "annotator", "input", "text"]
)
json_lines = st.dictionaries(names, json_values, max_size=6).map(lambda row: json.dumps(row).encode())
uploads = st.lists(json_lines | st.binary(max_size=40) | st.just(line()), max_size=8).map(b"\n".join)


@settings(deadline=None)
@given(
    uploads
    | uploads.map(gzip.compress)
    | uploads.map(lambda u: gzip.compress(u)[:-4])
    | st.binary(max_size=60)
)
def test_any_file_is_converted_or_refused_with_a_report(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "upload").write_bytes(content)
        for kind in ("preference", "prompts", "text"):
            found: object
            try:
                found = validate_file(path / "upload", path / "rows.parquet", max_bad_rows=3, kind=kind)
            except InvalidDataset as error:
                found = error.facts["report"]
            assert isinstance(found, DatasetReport)
