"""Uploads of every container, good and broken, over HTTP."""

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from tests.factories import json_lines, pairs, upload, validate


def parquet(rows: list[dict[str, str]]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target.getvalue()


@pytest.mark.parametrize("container", ["csv", "csv.gz", "json", "parquet"])
def test_the_format_that_was_found_is_told(client: TestClient, tmp_path: Path, container: str) -> None:
    rows = pairs(3)
    table = "prompt,chosen,rejected\n" + "".join(",".join(f'"{v}"' for v in r.values()) + "\n" for r in rows)
    content = {
        "csv": table.encode(),
        "csv.gz": gzip.compress(table.encode()),
        "json": b"[" + b",".join(json_lines(rows).splitlines()) + b"]",
        "parquet": parquet(rows),
    }[container]
    dataset_id = upload(client, content)
    validate(dataset_id, tmp_path)
    dataset = client.get(f"/v1/datasets/{dataset_id}").json()
    assert (dataset["status"], dataset["format"], dataset["rows"]) == ("ready", container, 3)
    assert client.get(f"/v1/datasets/{dataset_id}/report").json()["format"] == container
    found = client.get(f"/v1/datasets/{dataset_id}/rows").json()["data"]
    assert [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in found] == rows


@pytest.mark.parametrize(
    ("content", "says", "place"),
    [
        (gzip.compress(json_lines(pairs(9)))[:-9], "cut off", None),
        (json_lines(pairs(1)) + b'{"prompt": "\xff"}', "line 2, column 13", (2, 13)),
        (b'prompt,chosen,rejected\np,"c', "line 2: The row is not CSV", (2, None)),
        (b'[{"prompt": "p"} {}]', "Line 1, column 18", (1, None)),
        (parquet(pairs(5))[:-20], "Parquet file cannot be read", None),
        (parquet([{"prompt": "p", "chosen": " ", "rejected": "r"}]), 'row 1: The column "chosen"', (1, None)),
        (b"<html>", "HTML", (1, 1)),
    ],
    ids=["gzip", "utf-8", "csv", "json", "parquet", "blank cell", "html"],
)
def test_a_broken_upload_ends_as_a_report(
    client: TestClient, tmp_path: Path, content: bytes, says: str, place: tuple[int, int | None] | None
) -> None:
    dataset_id = upload(client, content)
    validate(dataset_id, tmp_path)
    dataset = client.get(f"/v1/datasets/{dataset_id}").json()
    assert dataset["status"] == "invalid"
    assert says in dataset["error"]["message"]
    report = client.get(f"/v1/datasets/{dataset_id}/report")
    assert report.status_code == 200
    bad = report.json()["bad"]
    assert bad == [] if place is None else bad[0]["line"] == place[0]
    if place is not None and place[1] is not None:
        assert bad[0]["column"] == place[1]
