"""Uploads onto a store that is full, cannot be written or does not answer, and deletions while it is away."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.datasets import uploads
from core import storage as stores
from core.settings import settings
from core.storage import storage
from tests.factories import json_lines, pairs
from tests.object_store import Door, door, fresh_bucket

CONTENT = json_lines(pairs(200))
LARGE = json_lines(pairs(4)) + b" " * (17 << 20)


@pytest.fixture
def far_door(
    client: TestClient, s3_url: str, bucket: str, settings_env: pytest.MonkeyPatch
) -> Iterator[Door]:
    """The application's store is on S3, behind a door."""
    assert bucket
    assert client
    assert bucket
    with door(s3_url) as opened:
        settings_env.setenv("AWS_ENDPOINT_URL", opened.url)
        settings_env.setenv("MPO_STORE_URL", fresh_bucket())
        settings.cache_clear()
        stores.storage.cache_clear()
        yield opened


def put(client: TestClient, content: bytes = CONTENT) -> tuple[str, int, str]:
    """A new dataset's id, and status and code of the answer to its upload."""
    dataset_id = client.post("/v1/datasets", json={"name": "d", "kind": "preference"}).json()["id"]
    answer = client.put(f"/v1/datasets/{dataset_id}/content", content=content)
    return dataset_id, answer.status_code, str(answer.json().get("code"))


def refused_then_accepted(client: TestClient, repair: Callable[[], None], content: bytes = CONTENT) -> None:
    dataset_id, status, code = put(client, content)
    assert (status, code) == (503, "store_unavailable")
    assert client.get("/healthz").status_code == 200
    assert client.get(f"/v1/datasets/{dataset_id}").json()["status"] == "awaiting_content"
    repair()
    assert storage().names("uploads") == []
    again = client.put(f"/v1/datasets/{dataset_id}/content", content=content)
    assert (again.status_code, again.json()["status"]) == (202, "validating")


def test_a_full_disk_refuses_an_upload_and_leaves_nothing(
    client: TestClient, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "new_id", lambda _: "req_full")
    (store / "uploads").mkdir()
    # The kernel's own full disk, under the name that the upload has until it is whole.
    (store / "uploads" / "req_full.part").symlink_to("/dev/full")
    form = {"name": "d", "kind": "preference"}
    answer = client.post("/v1/datasets", data=form, files={"file": CONTENT})
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert "No space left on device" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/v1/datasets").json()["data"] == []
    refused_nothing = client.post(
        "/v1/datasets", data={"name": "d", "kind": "preference"}, files={"file": CONTENT}
    )
    assert refused_nothing.status_code == 202


def test_a_store_that_cannot_be_written_refuses_an_upload(client: TestClient, store: Path) -> None:
    # Nobody, not even root, makes files here.
    (store / "uploads").symlink_to("/proc/self/fdinfo")
    refused_then_accepted(client, lambda: (store / "uploads").unlink())


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one-call", "several-parts"])
def test_an_object_store_that_answers_503_refuses_an_upload(
    client: TestClient, far_door: Door, content: bytes
) -> None:
    far_door.refuse = True

    def repair() -> None:
        far_door.refuse = False

    refused_then_accepted(client, repair, content)


def test_a_dataset_on_an_object_store_is_deleted_while_the_store_is_away(
    client: TestClient, far_door: Door
) -> None:
    dataset_id, status, _ = put(client)
    assert status == 202
    far_door.refuse = True
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 200
    assert client.get(f"/v1/datasets/{dataset_id}").status_code == 404
