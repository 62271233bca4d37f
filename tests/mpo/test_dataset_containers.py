"""Every accepted container gives the same rows, plain and packed."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpo import dataset_blocks, dataset_containers, dataset_json_array, dataset_parquet
from mpo.dataset_files import validate_file
from mpo.dataset_report import DatasetReport
from mpo.errors import InvalidDataset
from mpo.records import PreferencePair, read_pairs

ASK = {"role": "user", "content": "Why?\nSay, “so”."}
GOOD, BAD = {"role": "assistant", "content": "Because."}, {"role": "assistant", "content": "No."}
TEXTS: list[dict[str, Any]] = [
    {"prompt": 'a "quoted", ü\ntext', "chosen": " yes ", "rejected": "no", "annotator": "x", "margin": 0.5},
    {"prompt": "[1, 2]", "chosen": "😀", "rejected": "null", "annotator": "5", "weight": 2.0},
    {"prompt": "p", "chosen": "c\r\n", "rejected": "r", "source": "web"},
]
MESSAGES: list[dict[str, Any]] = [
    {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
]
OPENAI: list[dict[str, Any]] = [
    {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
]
SHAPES = {"texts": TEXTS, "messages": MESSAGES, "openai": OPENAI}


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return b"\xef\xbb\xbf " + json.dumps(rows, indent=2, ensure_ascii=False).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    names = sorted({name for row in rows for name in row})
    target = io.StringIO()
    writer = csv.DictWriter(target, names)
    writer.writeheader()
    for row in rows:
        cells = {k: v if isinstance(v, str | float) else json.dumps(v) for k, v in row.items()}
        writer.writerow(cells)
    return b"\xef\xbb\xbf" + target.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    names = sorted({name for row in rows for name in row})
    columns = {name: [row.get(name) for row in rows] for name in names}
    pq.write_table(pa.table(columns | {"unread": [[1]] * len(rows)}), target, row_group_size=2)
    return target.getvalue()


CONTAINERS = {"jsonl": as_jsonl, "json": as_json, "csv": as_csv, "parquet": as_parquet}


def validate(folder: Path, content: bytes, **options: Any) -> tuple[DatasetReport, list[PreferencePair]]:
    (folder / "upload").write_bytes(content)
    report = validate_file(folder / "upload", folder / "rows.parquet", **options)
    return report, read_pairs(folder / "rows.parquet")


def refused(folder: Path, content: bytes, **options: Any) -> tuple[str, DatasetReport]:
    with pytest.raises(InvalidDataset) as caught:
        validate(folder, content, **options)
    assert [file.name for file in folder.iterdir()] == ["upload"]
    report = caught.value.facts["report"]
    assert isinstance(report, DatasetReport)
    return caught.value.detail, report


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_hold_the_same_rows(tmp_path: Path, container: str, shape: str, packed: bool) -> None:
    _, expected = validate(tmp_path, as_jsonl(SHAPES[shape]))
    content = CONTAINERS[container](SHAPES[shape])
    report, pairs = validate(
        tmp_path, gzip.compress(content) if packed else content, media_type="application/octet-stream"
    )
    assert pairs == expected
    assert report.format == container + (".gz" if packed else "")
    assert len(pairs) == len(SHAPES[shape])


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_and_errors_are_the_same_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    rows = [{"prompt": f"p\n{n} ü", "chosen": "c" * n, "rejected": "r"} for n in range(40)]
    whole = validate(tmp_path, CONTAINERS[container](rows), max_bad_rows=1)
    assert (whole[0].rows, whole[0].bad_rows) == (39, 1)
    monkeypatch.setattr(dataset_parquet, "BATCH_ROWS", 7)
    monkeypatch.setattr(dataset_blocks, "GROUP_ROWS", 5)
    # Enough to see what the file is; the rest comes in drops.
    for size in (64, 201):
        monkeypatch.setattr(dataset_containers, "CHUNK_BYTES", size)
        assert validate(tmp_path, CONTAINERS[container](rows), max_bad_rows=1) == whole


def test_bad_rows_of_an_array_are_named_by_line_and_column(tmp_path: Path) -> None:
    good = '{"prompt": "p", "chosen": "c", "rejected": "r"}'
    text = f'[{good},\n 7, {{"prompt": NaN}},\n  {{"prompt": "\\ud800"}}, {{\n"prompt": "\udcff"}},'
    text += f'{{"x": {"9" * 5000}}}, {good}\n]'
    report, pairs = validate(tmp_path, text.encode(errors="surrogateescape"), max_bad_rows=5)
    assert [pair.id for pair in pairs] == ["0", "6"]
    assert [(bad.line, bad.column) for bad in report.bad] == [(2, 2), (2, 5), (3, 3), (4, 12), (4, 16)]


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ('[{"prompt": "p"},\n {"prompt" "p"}]', 2, 12, "':' delimiter"),
        ('[{"prompt": "p"}\n', 2, 1, "']' is missing"),
        ('[{"prompt": "p"}] x', 1, 19, "More follows"),
        ("[{}, ]", 1, 6, "Expecting value"),
        ('[{"prompt": "p', 1, 13, "Unterminated string"),
        ("[" + '{"a":' * 20_000, 1, 2, "nested too deep"),
    ],
)
def test_an_array_that_breaks_off_names_the_place(
    tmp_path: Path, text: str, line: int, column: int, says: str
) -> None:
    detail, report = refused(tmp_path, text.encode(), max_bad_rows=10)
    assert (report.bad[-1].line, report.bad[-1].column) == (line, column)
    assert detail.startswith(f"Line {line}, column {column}: ")
    assert says in detail
    assert not report.complete


def test_a_row_of_an_array_may_not_be_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_json_array, "MAX_LINE_BYTES", 3000)
    monkeypatch.setattr(dataset_containers, "CHUNK_BYTES", 500)
    detail, _ = refused(tmp_path, b'[{"prompt": "' + b"x" * 9000)
    assert "longer than 3000" in detail


CSV_HEAD = b"prompt,chosen,rejected\n"


def test_bad_rows_of_csv_are_named_by_their_first_line(tmp_path: Path) -> None:
    content = CSV_HEAD + b'"p\n\nq",c,r\np,c\np,c,r,x\n\np,\xff\xff,r\np,\0,r\np,"c"c,r\np,,r\n p,c,r\n'
    report, pairs = validate(tmp_path, content, max_bad_rows=6)
    assert [(pair.id, pair.prompt) for pair in pairs] == [("0", "p\n\nq"), ("7", " p")]
    assert [(bad.line, bad.column) for bad in report.bad] == [
        (5, None),
        (6, None),
        (8, 3),
        (9, None),
        (10, None),
        (11, None),
    ]
    said = ["2 cell(s), the header 3", "4 cell(s)", "not UTF-8", "NUL", "not CSV", '"chosen" is missing']
    assert all(word in bad.message for word, bad in zip(said, report.bad, strict=True))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"prompt,chosen\np,c\n", 'Line 1, column 1: The header lacks the column "rejected"'),
        (b"text,x\np,c\n", 'lacks the column "chosen"'),
        (b"prompt,chosen,rejected,chosen\np,c,r,c\n", "names a column twice"),
        (CSV_HEAD, "no row"),
    ],
)
def test_csv_without_its_columns_is_refused_at_the_header(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in refused(tmp_path, content, max_bad_rows=10)[0]


def test_an_open_quotation_mark_does_not_swallow_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpo.dataset_csv.MAX_LINE_BYTES", 3000)
    detail, _ = refused(tmp_path, CSV_HEAD + b"p,c,r\n" + b'p,"c,r\n' + b"p,c,r\n" * 1000)
    assert detail.startswith("Line 3: ")
    assert "quotation mark" in detail


def test_a_text_that_looks_like_messages_stays_a_text(tmp_path: Path) -> None:
    looks = json.dumps([GOOD])
    rows = [{"prompt": "p", "chosen": looks, "rejected": "r"}]
    assert validate(tmp_path, as_csv(rows))[1][0].chosen == looks


@pytest.mark.parametrize("container", ["json", "jsonl"])
def test_a_column_that_nobody_reads_may_nest_deep(tmp_path: Path, container: str) -> None:
    content = CONTAINERS[container]([{"prompt": "p", "chosen": "c", "rejected": "r"}])
    deep = '{"a":' * 800 + r'"\u0041"' + "}" * 800
    content = content.replace(b'"rejected"', f'"other": {deep}, "rejected"'.encode())
    report, _ = validate(tmp_path, content)
    assert (report.rows, report.bad_rows) == (1, 0)


def test_a_cell_that_nests_deep_is_as_any_other(tmp_path: Path) -> None:
    deep = '{""a"":' * 800 + "1" + "}" * 800
    report, _ = validate(tmp_path, f'prompt,chosen,rejected,input\np,c,r,"{deep}"\n'.encode())
    assert report.rows == 1


def parquet_of(**columns: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def test_columns_of_parquet_may_have_any_type_that_fits(tmp_path: Path) -> None:
    content = parquet_of(
        prompt=pa.array(["p", "q"]).dictionary_encode(),
        chosen=pa.array(["c", "d"], pa.large_string()),
        rejected=pa.array(["r", "s"]),
        id=pa.array([7, 9], pa.int32()),
        margin=pa.array([1, None], pa.int64()),
        weight=pa.array([0.5, 1], pa.float32()),
        annotator=pa.nulls(2),
    )
    _, pairs = validate(tmp_path, content)
    assert [(p.id, p.prompt, p.chosen, p.margin, p.weight) for p in pairs] == [
        ("7", "p", "c", 1.0, 0.5),
        ("9", "q", "d", None, 1.0),
    ]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"chosen": [["x"]], "rejected": ["r"], "prompt": ["p"]}, "row 1: "),
        ({"chosen": [b"x"], "rejected": ["r"], "prompt": ["p"]}, '"chosen" holds'),
        ({"chosen": [{"a": 1}], "rejected": ["r"], "prompt": ["p"]}, '"chosen" holds an object'),
        ({"chosen": ["c"], "rejected": ["\0"], "prompt": ["p"]}, "NUL"),
        ({"chosen": ["c"], "rejected": ["r"], "prompt": [None]}, '"prompt" is missing'),
        ({"chosen": ["c"], "rejected": ["r"], "prompt": ["p"], "margin": [float("nan")]}, '"margin"'),
        ({"chosen": ["c"], "rejected": ["r"], "source": pa.array([2**62], pa.duration("s"))}, "out of range"),
        ({"chosen": ["c"], "rejected": ["r"], "id": pa.array([2**62], pa.timestamp("us"))}, "out of range"),
        ({"chosen": ["c"], "prompt": ["p"]}, 'lacks the column "rejected"'),
        (
            {
                "chosen": pa.StringArray.from_buffers(
                    1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")
                ),
                "rejected": ["r"],
                "prompt": ["p"],
            },
            "UTF",
        ),
    ],
    ids=["list", "bytes", "struct", "nul", "null", "nan", "duration", "date", "missing", "undecodable"],
)
def test_bad_rows_of_parquet_are_named_by_row_and_column(
    tmp_path: Path, columns: dict[str, Any], says: str
) -> None:
    detail, _ = refused(tmp_path, parquet_of(**columns))
    assert says in detail


def test_a_long_text_that_many_rows_share_is_written_out_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_parquet, "MAX_BATCH_BYTES", 10_000)
    written_out: list[int] = []
    read = dataset_parquet._block
    monkeypatch.setattr(
        dataset_parquet,
        "_block",
        lambda table, *rest: written_out.append(table.num_rows) or read(table, *rest),
    )
    content = parquet_of(prompt=["p" * 1000] * 50, chosen=["c"] * 50, rejected=["r"] * 50)
    report, pairs = validate(tmp_path, content)
    assert (len(pairs), report.duplicates) == (50, 49)
    assert sum(written_out) == 50
    assert max(written_out) < 10
