"""Uploads that are broken or hostile: each is refused by name and place, in little memory."""

import gzip
import io
import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpo.dataset_files import validate_file
from mpo.dataset_report import DatasetReport
from mpo.errors import InvalidDataset

GOOD = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
MAX_MEGABYTES_OVER_IDLE = 300

VALIDATE = """
import json, re, resource, sys
from pathlib import Path
from mpo.dataset_files import validate_file
from mpo.errors import InvalidDataset
source = Path(sys.argv[1])
idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
try:
    validate_file(source, source.parent / "rows.parquet")
    said = "accepted"
except InvalidDataset as error:
    said = error.detail
# Not ru_maxrss: a process inherits that from the one that started it.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"said": said, "megabytes": (peak - idle) / 1e6}))
"""


def refused(folder: Path, content: bytes) -> tuple[str, DatasetReport]:
    (folder / "upload").write_bytes(content)
    with pytest.raises(InvalidDataset) as caught:
        validate_file(folder / "upload", folder / "rows.parquet")
    assert [file.name for file in folder.iterdir()] == ["upload"]
    report = caught.value.facts["report"]
    assert isinstance(report, DatasetReport)
    json.dumps(report.to_json(), allow_nan=False)
    return caught.value.detail, report


def zipped(content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("pairs.jsonl", content)
    return target.getvalue()


def parquet(**options: object) -> bytes:
    target = io.BytesIO()
    texts = {name: [name] * 100 for name in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table(texts), target, **options)
    return target.getvalue()


def footer_of_lies() -> bytes:
    """A footer whose length is right and whose thrift is noise."""
    noise = bytes(range(255, 0, -1)) * 40
    return b"PAR1" + noise + len(noise).to_bytes(4, "little") + b"PAR1"


def overwritten(content: bytes, at: int, by: bytes) -> bytes:
    return content[:at] + by + content[at + len(by) :]


BROKEN = {
    "empty": (b"", "no row"),
    "blank": (b"\r\n \n", "no row"),
    "truncated gzip": (gzip.compress(GOOD * 9)[:-9], "cut off"),
    "truncated gzip header": (gzip.compress(GOOD)[:5], "cut off"),
    "damaged gzip": (overwritten(gzip.compress(GOOD * 9), 20, b"\0\0\0"), "damaged"),
    "gzip within gzip": (gzip.compress(gzip.compress(GOOD)), "gzip within gzip"),
    "rubbish after gzip": (gzip.compress(GOOD) + b"rubbish", "damaged, or followed"),
    "deflate without gzip": (zlib.compress(GOOD), "line 1, column 2: The line is not UTF-8"),
    "zip": (zipped(GOOD), "a zip archive"),
    "zip in gzip": (gzip.compress(zipped(GOOD)), "a zip archive"),
    "utf-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "utf-16 without mark": (GOOD.decode().encode("utf-16-be"), "UTF-16"),
    "html": (b"<!DOCTYPE html>\n<html><title>502</title>", "HTML"),
    "invalid utf-8": (GOOD + b'{"prompt": "\xc3\x28"}', "line 2, column 13: The line is not UTF-8"),
    "nan": (GOOD + GOOD.replace(b'"p"', b"NaN"), "line 2: The line is not JSON: it holds NaN"),
    "lone surrogate": (GOOD * 2 + GOOD.replace(b'"c"', b'"\\udead"'), "line 3: A string holds half"),
    "nul": (GOOD.replace(b'"c"', b'"\\u0000"'), "line 1: A string holds a NUL"),
    "raw nul": (GOOD + GOOD.replace(b'"c"', b'"\0"'), "line 2, column 28: The line is not JSON"),
    "deep": (GOOD + b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "line 2: The line is nested"),
    "wrong columns": (b'{"question": "q", "answer": "a"}', 'line 1: The column "chosen" is missing'),
    "wrong type": (GOOD.replace(b'"r"', b"5"), 'line 1: The column "rejected" holds a number'),
    "ragged csv": (b"prompt,chosen,rejected\np,c,r\np,c\n", "line 3: The row has 2 cell(s)"),
    "semicolons": (b"prompt;chosen;rejected\np;c;r\n", "line 1, column 1: The line is not JSON"),
    "carriage returns": (
        GOOD.replace(b"\n", b"\r") * 2,
        "line 1, column 49: The line is not JSON: Extra data",
    ),
    "array cut off": (b"[" + GOOD + b",", "Line 2, column 2: The file is not JSON"),
    "short parquet": (b"PAR1", "Parquet file cannot be read"),
    "truncated parquet": (parquet()[:-50], "Parquet file cannot be read"),
    "noise as footer": (footer_of_lies(), "Parquet file cannot be read"),
    "footer too long": (b"PAR1" + b"\xff\xff\xff\x7fPAR1", "Parquet file cannot be read"),
    "footer without end": (parquet()[:-8] + b"\xff\xff\xff\xffPAR1", "Parquet file cannot be read"),
    "damaged pages": (overwritten(parquet(), 4, b"\xff" * 60), "Parquet file cannot be read"),
    "encrypted footer": (parquet()[:-4] + b"PARE", "Parquet file cannot be read"),
    "parquet in gzip, truncated": (gzip.compress(parquet()[:-50]), "Parquet file cannot be read"),
    "arrow file": (b"ARROW1\0\0", "an Arrow file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_upload_is_refused_by_name_and_place(tmp_path: Path, name: str) -> None:
    content, says = BROKEN[name]
    detail, report = refused(tmp_path, content)
    assert says in detail
    assert len(detail) < 600
    assert report.bad_rows == len(report.bad)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 3,
        GOOD.replace(b"{", b'{"chosen": 1, ') * 3,
        gzip.compress(GOOD) * 3 + b"\0\0\0",
    ],
    ids=["byte order mark and CRLF", "duplicate keys", "gzip members and padding"],
)
def test_odd_upload_is_accepted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "upload").write_bytes(content)
    assert validate_file(tmp_path / "upload", tmp_path / "rows.parquet").rows == 3


def bomb_of_zeros(target: Path) -> None:
    """A row of two gigabytes in two megabytes; a gzip member a piece makes it cheaply."""
    target.write_bytes(gzip.compress(GOOD + b'{"prompt": "') + gzip.compress(bytes(2**24), 9) * 128)


def line_of_a_gigabyte(target: Path) -> None:
    """Sparse: a line of 2**30 bytes that takes no disk."""
    with target.open("wb") as file:
        file.write(GOOD + b'{"prompt": "')
        file.seek(2**30, io.SEEK_CUR)
        file.write(b'"}\n' + GOOD)


def csv_cell_of_a_gigabyte(target: Path) -> None:
    with target.open("wb") as file:
        file.write(b'prompt,chosen,rejected\np,c,r\np,"')
        file.write(b"x\n" * 2**14)
        file.seek(2**30, io.SEEK_CUR)
        file.write(b"\n")


def array_row_of_a_gigabyte(target: Path) -> None:
    with target.open("wb") as file:
        file.write(b'[{"prompt": "')
        file.seek(2**30, io.SEEK_CUR)
        file.write(b'"}]')


def shared_text_in_parquet(target: Path) -> None:
    """A dictionary of one text of a megabyte, and 2,000 rows of it: two gigabytes, written out."""
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x " * 2**19]))
    table = pa.table({"prompt": ["p"] * 2000, "chosen": long, "rejected": [" "] * 2000})
    pq.write_table(table, target, dictionary_pagesize_limit=2**30, write_statistics=False)


def page_bomb_in_parquet(target: Path) -> None:
    """One value of 300 megabytes, packed to a few kilobytes."""
    text = pa.array([b"x" * 300_000_000], pa.large_binary()).view(pa.large_string())
    table = pa.table({"prompt": ["p"], "chosen": text, "rejected": ["r"]})
    pq.write_table(table, target, compression="zstd", use_dictionary=False, write_statistics=False)


HUGE = {
    "bomb": (bomb_of_zeros, "unpacks to more than"),
    "line": (line_of_a_gigabyte, "line 2: The line is longer than 16777216 bytes."),
    "csv": (csv_cell_of_a_gigabyte, "The line is longer than"),
    "array": (array_row_of_a_gigabyte, "Line 1, column 2: The row is not JSON, or longer than"),
    "dictionary": (shared_text_in_parquet, 'row 1: The column "rejected" is empty'),
    "page": (page_bomb_in_parquet, "Parquet file needs more than"),
}


@pytest.mark.parametrize("name", HUGE)
def test_hostile_upload_costs_little_memory(tmp_path: Path, name: str) -> None:
    make, says = HUGE[name]
    make(tmp_path / "upload")
    command = [sys.executable, "-c", VALIDATE, str(tmp_path / "upload")]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert found.returncode == 0, found.stderr
    measured = json.loads(found.stdout)
    assert says in measured["said"]
    assert measured["megabytes"] < MAX_MEGABYTES_OVER_IDLE
