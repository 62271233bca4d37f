"""Datasets from upload to deletion."""

import asyncio
import base64
import gzip
import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from core.bootstrap import register_model
from core.database import open_transaction
from tests.factories import json_lines, make_job, make_key, pairs, upload, validate


def made(client: TestClient, **body: object) -> str:
    response = client.post("/v1/datasets", json={"name": "pairs", "kind": "preference", **body})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def test_json_makes_a_dataset_that_awaits_its_content(client: TestClient) -> None:
    response = client.post("/v1/datasets", json={"name": "pairs", "kind": "preference"})
    dataset = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/datasets/{dataset['id']}"
    assert dataset["status"] == "awaiting_content"
    assert dataset["object"] == "dataset"
    assert client.get(response.headers["location"]).json() == dataset


def test_content_is_validated_and_its_rows_and_report_can_be_read(client: TestClient, tmp_path: Path) -> None:
    dataset_id, content = made(client), json_lines(pairs(25))
    response = client.put(f"/v1/datasets/{dataset_id}/content", content=content)
    assert response.status_code == 202
    assert response.json()["status"] == "validating"
    assert response.json()["sha256"] == hashlib.sha256(content).hexdigest()
    validate(dataset_id, tmp_path)
    dataset = client.get(f"/v1/datasets/{dataset_id}").json()
    assert (dataset["status"], dataset["rows"], dataset["bad_rows"]) == ("ready", 25, 0)
    first = client.get(f"/v1/datasets/{dataset_id}/rows?limit=20").json()
    rest = client.get(f"/v1/datasets/{dataset_id}/rows?limit=20&after={first['last_id']}").json()
    assert first["has_more"]
    assert not rest["has_more"]
    rows = first["data"] + rest["data"]
    assert [row["id"] for row in rows] == [str(n) for n in range(25)]
    assert [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows] == pairs(25)
    backwards = client.get(f"/v1/datasets/{dataset_id}/rows?limit=2&order=desc").json()
    assert [row["id"] for row in backwards["data"]] == ["24", "23"]
    assert client.get(f"/v1/datasets/{dataset_id}/rows?after=nope").status_code == 422
    report = client.get(f"/v1/datasets/{dataset_id}/report?against={dataset_id}").json()
    assert (report["rows"], report["bad"], report["shared_prompts"]) == (25, [], 25)


def test_lengths_are_told_in_a_model_s_tokens_too(client: TestClient, tmp_path: Path) -> None:
    examples = Path(__file__).parents[3] / "examples"
    with open_transaction() as tx:
        register_model(tx, examples / "tiny", name="tiny")
    dataset_id = upload(client, gzip.decompress((examples / "pairs.jsonl.gz").read_bytes()))
    path = f"/v1/datasets/{dataset_id}/report?model="
    early = client.get(path + "tiny")
    assert (early.json()["code"], early.headers["x-should-retry"]) == ("dataset_not_validated", "true")
    validate(dataset_id, tmp_path)
    report = client.get(path + "tiny").json()
    assert report["sampled_rows"] == 512
    for name in ("prompt", "chosen", "rejected"):
        assert 0 < report["tokens"][name]["0.5"] < report["lengths"][name]["0.5"]
    unknown = client.get(path + "none")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (422, "model")


def test_rows_go_on_after_an_uploaded_id(client: TestClient, tmp_path: Path) -> None:
    rows = [{**row, "id": f"row-{n}"} for n, row in enumerate(pairs(5))]
    dataset_id = upload(client, json_lines(rows))
    validate(dataset_id, tmp_path)
    page = client.get(f"/v1/datasets/{dataset_id}/rows?after=row-2").json()
    assert [row["id"] for row in page["data"]] == ["row-3", "row-4"]


def test_an_invalid_dataset_has_a_report_that_names_the_line(client: TestClient, tmp_path: Path) -> None:
    dataset_id = upload(client, json_lines(pairs(2)) + b'{"prompt": "x"}\n')
    validate(dataset_id, tmp_path)
    dataset = client.get(f"/v1/datasets/{dataset_id}").json()
    assert dataset["status"] == "invalid"
    assert dataset["error"]["code"] == "invalid_dataset"
    report = client.get(f"/v1/datasets/{dataset_id}/report").json()
    assert report["bad_rows"] == 1
    assert report["bad"][0]["line"] == 3
    for what in ("rows", f"report?against={dataset_id}"):
        response = client.get(f"/v1/datasets/{dataset_id}/{what}")
        assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")


def test_the_same_content_again_is_fine_and_other_content_is_refused(client: TestClient, store: Path) -> None:
    dataset_id, content = made(client), gzip.compress(json_lines(pairs(3)))
    path = f"/v1/datasets/{dataset_id}/content"
    assert [client.put(path, content=content).status_code for _ in range(2)] == [202, 200]
    other = client.put(path, content=b"other")
    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    assert len(list((store / "uploads").iterdir())) == 1


@pytest.mark.parametrize(
    ("digest", "status", "code"),
    [
        (base64.b64encode(hashlib.sha256(b"content").digest()).decode(), 202, None),
        (base64.b64encode(hashlib.sha256(b"other").digest()).decode(), 400, "digest_mismatch"),
        ("nonsense", 400, "bad_content_digest"),
        ("\u00ff", 400, "bad_content_digest"),
    ],
)
def test_content_digest_is_checked(
    client: TestClient, store: Path, digest: str, status: int, code: str | None
) -> None:
    path = f"/v1/datasets/{made(client)}/content"
    response = client.put(
        path, content=b"content", headers=[(b"Content-Digest", f"sha-256=:{digest}:".encode("latin-1"))]
    )
    assert response.status_code == status
    assert response.json().get("code") == code
    assert len(list((store / "uploads").glob("*"))) == (1 if code is None else 0)


def test_an_upload_above_the_bound_is_refused_and_leaves_nothing(
    client: TestClient, store: Path, settings_env: pytest.MonkeyPatch
) -> None:
    from core.settings import settings

    path = f"/v1/datasets/{made(client)}/content"
    settings_env.setenv("MPO_MAX_UPLOAD_BYTES", "1000")
    settings.cache_clear()
    assert client.put(path, content=b"x" * 1001).status_code == 413
    assert client.put(path, content=b"x" * (3 << 20)).status_code == 413
    assert list((store / "uploads").iterdir()) == []
    assert client.put(path, content=b"x" * 1000).status_code == 202


def test_a_dataset_in_use_is_not_deleted(client: TestClient, store: Path) -> None:
    dataset_id = upload(client)
    with open_transaction() as tx:
        job = make_job(tx, dataset_id)
    assert client.delete(f"/v1/datasets/{dataset_id}").json()["code"] == "dataset_in_use"
    with open_transaction() as tx:
        tx.session.merge(job).status = "succeeded"
    assert client.delete(f"/v1/datasets/{dataset_id}").json()["deleted"]
    assert client.get(f"/v1/datasets/{dataset_id}").status_code == 404
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 404
    assert list((store / "uploads").iterdir()) == []


def test_lists_are_pages_newest_first_of_the_owner_alone(client: TestClient) -> None:
    ids = [made(client, name=str(n)) for n in range(5)]
    first = client.get("/v1/datasets?limit=3").json()
    rest = client.get(f"/v1/datasets?limit=3&after={first['last_id']}").json()
    assert [d["id"] for d in first["data"] + rest["data"]] == ids[::-1]
    assert (first["object"], first["has_more"], rest["has_more"]) == ("list", True, False)
    assert client.get("/v1/datasets?order=asc").json()["first_id"] == ids[0]
    other = make_key("read", owner="other")
    assert client.get("/v1/datasets", headers=other).json()["data"] == []
    assert client.get(f"/v1/datasets/{ids[0]}", headers=other).status_code == 404
    assert client.get("/v1/datasets?limit=101").status_code == 422


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"name": "x", "kind": "SECRET"}, "kind", "'preference', 'prompts' or 'text'"),
        ({"name": "x", "sise": "SECRET"}, "sise", "kind, max_bad_rows, name"),
        ({"kind": "text"}, "name", "required"),
        ({"name": "SECRET\0", "kind": "text"}, "name", "NUL"),
        ({"name": "x", "max_bad_rows": -1}, "max_bad_rows", "greater than or equal to 0"),
    ],
)
def test_a_refused_field_is_named_with_what_is_accepted(
    client: TestClient, body: dict[str, object], param: str, says: str
) -> None:
    response = client.post("/v1/datasets", json=body)
    problem = response.json()
    assert response.status_code == 422
    assert problem["errors"][0]["loc"] == ["body", param]
    assert says in problem["errors"][0]["message"]
    assert problem["error"]["param"] == param
    assert "SECRET" not in response.text


def test_a_form_without_a_file_and_a_broken_body_are_refused(client: TestClient) -> None:
    form = client.post("/v1/datasets", data={"name": "x"}, files={"other": b"x"})
    assert (form.status_code, form.json()["error"]["param"]) == (422, "file")
    for content in (b'{"name": ', b"\xff\xfe", b""):
        response = client.post("/v1/datasets", content=content)
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("charset", ["undefined", "punycode"])
def test_a_form_in_a_charset_that_fails_is_refused(client: TestClient, store: Path, charset: str) -> None:
    part = b"--x\r\nContent-Disposition: form-data; name=%s\r\n\r\n\xff\xfe\r\n"
    form = part % b"name" + part % b'"file"; filename="f"' + b"--x--\r\n"
    sent_as = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    response = client.post("/v1/datasets", content=form, headers=sent_as)
    assert (response.status_code, response.json()["errors"][0]["loc"]) == (422, ["header", "Content-Type"])
    assert not (store / "uploads").exists()


@pytest.mark.parametrize("is_form", [False, True])
def test_a_client_that_goes_away_in_mid_upload_leaves_nothing(
    client: TestClient, store: Path, is_form: bool
) -> None:
    dataset_id = made(client)
    path = "/v1/datasets" if is_form else f"/v1/datasets/{dataset_id}/content"
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' if is_form else b""
    messages = [{"type": "http.request", "body": start + b"x" * (3 << 20), "more_body": True}]
    sent: list[object] = []
    scope = {
        "type": "http",
        "method": "POST" if is_form else "PUT",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [
            (b"authorization", client.headers["authorization"].encode()),
            (b"content-type", b"multipart/form-data; boundary=b" if is_form else b"application/jsonl"),
        ],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("t", 80),
        "root_path": "",
    }

    async def receive() -> dict[str, object]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))
    assert sent == []
    assert list((store / "uploads").glob("*")) == []
    assert client.get(f"/v1/datasets/{dataset_id}").json()["status"] == "awaiting_content"
    assert len(client.get("/v1/datasets").json()["data"]) == 1
