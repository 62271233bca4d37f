"""Base and trained models: listed, registered, downloaded, deleted."""

import hashlib
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from core.database import open_transaction
from core.settings import settings
from core.tables import Artifact, Job, Run
from core.work_lookup import locate_base, locate_model
from tests.factories import make_dataset, make_job, make_key, make_trained_model


@pytest.fixture
def roots(tmp_path: Path, settings_env: pytest.MonkeyPatch) -> Path:
    """The folder below which models may be registered."""
    folder = tmp_path / "models"
    folder.mkdir()
    settings_env.setenv("MPO_MODEL_ROOTS", str(folder))
    settings.cache_clear()
    return folder


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    return folder


def trained(store: Path, status: str = "succeeded", adapter: bool = False) -> tuple[str, Job]:
    content = b"0123456789"
    folder = store / "runs/run_1/1/model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    names = ["model.safetensors"]
    if adapter:
        (folder / "adapter").mkdir()
        (folder / "adapter/adapter_model.safetensors").write_bytes(content)
        names.append("adapter/adapter_model.safetensors")
    digest = hashlib.sha256(content).hexdigest()
    files = [{"name": name, "bytes": len(content), "sha256": digest} for name in names]
    with open_transaction() as tx:
        job = make_job(tx, make_dataset(tx).id, status=status)
        return make_trained_model(tx, job, "runs/run_1/1/model", files), job


def test_a_folder_below_an_allowed_root_becomes_a_model(roots: Path, client: TestClient) -> None:
    body = {"name": "base-1", "path": str(model_folder(roots / "m"))}
    response = client.post("/v1/models", json=body)
    assert response.status_code == 201, response.text
    model = response.json()
    assert (model["id"], model["object"], model["kind"]) == ("base-1", "model", "policy")
    assert client.get(response.headers["location"]).json() == model
    assert client.post("/v1/models", json=body).status_code == 201
    other = {"name": "base-1", "path": str(model_folder(roots / "n"))}
    assert client.post("/v1/models", json=other).json()["code"] == "model_exists"


def test_no_other_folder_becomes_a_model(roots: Path, client: TestClient, tmp_path: Path) -> None:
    outside = model_folder(tmp_path / "outside")
    (roots / "link").symlink_to(outside)
    (roots / "empty").mkdir()
    for path in (outside, roots / "link", roots / ".." / "outside", roots / "none", roots / "empty"):
        response = client.post("/v1/models", json={"name": "x", "path": str(path)})
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["body", "path"]
    name = client.post("/v1/models", json={"name": "../x", "path": str(outside)})
    assert name.json()["error"]["param"] == "name"


def test_trained_models_are_listed_with_base_ones_in_pages(
    roots: Path, client: TestClient, store: Path
) -> None:
    client.post("/v1/models", json={"name": "base", "path": str(model_folder(roots / "m"))})
    name, job = trained(store)
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == [name, "base"]
    first = client.get("/v1/models?limit=1").json()
    rest = client.get(f"/v1/models?limit=1&after={first['last_id']}").json()
    assert (first["last_id"], first["has_more"]) == (name, True)
    assert (rest["last_id"], rest["has_more"]) == ("base", False)
    model = client.get(f"/v1/models/{name}").json()
    assert (model["job"], model["stage"], model["base"]) == (job.id, "sft", "tiny")
    other = make_key("read", owner="other")
    assert [m["id"] for m in client.get("/v1/models", headers=other).json()["data"]] == ["base"]
    assert client.get(f"/v1/models/{name}", headers=other).status_code == 404
    assert client.get(f"/v1/models/{name}/files", headers=other).status_code == 404


@pytest.mark.parametrize(
    ("header", "status", "content", "content_range"),
    [
        (None, 200, b"0123456789", None),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=4-2", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_file_is_served_whole_or_in_a_range(
    client: TestClient,
    store: Path,
    header: str | None,
    status: int,
    content: bytes,
    content_range: str | None,
) -> None:
    name, _ = trained(store)
    (file,) = client.get(f"/v1/models/{name}/files").json()["data"]
    assert (file["name"], file["bytes"]) == ("model.safetensors", 10)
    path = f"/v1/models/{name}/files/{file['name']}"
    response = client.get(path, headers={"Range": header} if header else {})
    assert (response.status_code, response.content) == (status, content)
    assert response.headers.get("content-range") == content_range
    assert response.headers["etag"] == f'"{file["sha256"]}"'


def test_the_base_of_a_model_of_adapters_is_found_by_the_run_that_made_it(
    client: TestClient, store: Path
) -> None:
    name, job = trained(store, adapter=True)
    with open_transaction() as tx:
        located = locate_model(tx, job.owner, name)
        assert locate_base(tx, located) is None, "trained whole"
        run = tx.session.get_one(Run, tx.session.get_one(Artifact, located["id"]).run_id)
        base = {"kind": "model", "id": "tiny", "name": "tiny", "location": "file:///m/tiny", "sha256": "1"}
        run.inputs = {"policy": [base], "base": [base]}
    with open_transaction() as tx:
        assert locate_base(tx, located) == base
        assert locate_base(tx, base) is None, "a base model is no adapter"


def test_ranges_outside_unknown_files_and_stale_if_range(client: TestClient, store: Path) -> None:
    name, _ = trained(store)
    path = f"/v1/models/{name}/files/model.safetensors"
    outside = client.get(path, headers={"Range": "bytes=10-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, "bytes */10")
    stale = client.get(path, headers={"Range": "bytes=0-0", "If-Range": '"old"'})
    assert (stale.status_code, len(stale.content)) == (200, 10)
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    for file in ("none", "..%2Fmodel.safetensors", "../../x"):
        assert client.get(f"/v1/models/{name}/files/{file}").status_code == 404
    assert client.get(f"/v1/models/{name}/files?form=adapter").status_code == 409


def test_a_model_of_adapters_is_served_merged_and_as_the_adapter_alone(
    client: TestClient, store: Path
) -> None:
    name, _ = trained(store, adapter=True)
    for form in ("", "?form=merged"):
        listed = client.get(f"/v1/models/{name}/files{form}").json()["data"]
        assert [file["name"] for file in listed] == ["model.safetensors"]
    (file,) = client.get(f"/v1/models/{name}/files?form=adapter").json()["data"]
    assert file["name"] == "adapter_model.safetensors"
    path = f"/v1/models/{name}/files/{file['name']}"
    assert client.get(f"{path}?form=adapter").content == b"0123456789"
    assert client.get(path).status_code == 404


def test_a_trained_model_is_deleted_once_its_job_has_finished(client: TestClient, store: Path) -> None:
    name, job = trained(store, status="running")
    assert client.delete(f"/v1/models/{name}").json()["code"] == "model_in_use"
    with open_transaction() as tx:
        tx.session.merge(job).status = "succeeded"
    assert client.delete(f"/v1/models/{name}").json() == {"id": name, "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{name}").status_code == 404
    assert client.get(f"/v1/models/{name}/files").status_code == 404


def test_only_admins_forget_a_base_model_and_only_an_unused_one(roots: Path, client: TestClient) -> None:
    client.post("/v1/models", json={"name": "tiny", "path": str(model_folder(roots / "m"))})
    assert client.delete("/v1/models/tiny", headers=make_key("write")).status_code == 403
    with open_transaction() as tx:
        job = make_job(tx, make_dataset(tx).id)
    assert client.delete("/v1/models/tiny").status_code == 409
    with open_transaction() as tx:
        tx.session.merge(job).status = "failed"
    assert client.delete("/v1/models/tiny").status_code == 200
    assert client.get("/v1/models/tiny").status_code == 404
