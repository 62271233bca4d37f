"""Who may call what: every route, without a key, with a wrong one, and with too little scope."""

import re
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from app import authentication
from app.main import ROUTERS
from core.database import open_transaction
from core.ids import new_id
from core.tables import ApiKey, Comparison, Evaluation, StageRow
from tests.factories import evaluation_request, make_dataset, make_job, make_key, make_trained_model

ADMIN_ONLY = {("POST", "/v1/models"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/{key_id}")}
PARAMETER = re.compile(r"{(\w+)(?::path)?}")
READING_POSTS = {
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/rewards",
    "/v1/tokenize",
    "/v1/detokenize",
} | {"/get_reward"}


def every_route() -> Iterator[tuple[str, str]]:
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods or ()):
                yield method, route.path


@pytest.fixture
def keys(client: TestClient) -> dict[str, dict[str, str]]:
    return {scope: make_key(scope) for scope in ("read", "write", "admin")}


def test_no_route_answers_without_a_valid_key(client: TestClient) -> None:
    del client.headers["authorization"]
    for method, path in every_route():
        for headers in ({}, {"Authorization": "Bearer mpo_sk_wrong"}, {"Authorization": "Basic eDp5"}):
            response = client.request(method, path, json={}, headers=headers)
            assert response.status_code == 401, f"{method} {path}"
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert response.headers["x-request-id"]
            if method != "HEAD":
                assert response.json()["error"]["type"] == "authentication_error"


def test_a_key_that_only_reads_changes_nothing(client: TestClient, keys: dict[str, dict[str, str]]) -> None:
    for method, path in every_route():
        response = client.request(method, path, json={}, headers=keys["read"])
        changes = method not in ("GET", "HEAD") and path not in READING_POSTS
        if changes:
            assert response.status_code == 403, f"{method} {path}: {response.text}"
            assert "insufficient_scope" in response.headers["www-authenticate"]
            assert response.json()["error"]["type"] == "permission_error"
        elif path not in READING_POSTS:
            assert response.status_code not in (401, 403, 405, 500), f"{method} {path}: {response.text}"


def test_only_admins_do_what_concerns_everybody(client: TestClient, keys: dict[str, dict[str, str]]) -> None:
    for method, path in sorted(ADMIN_ONLY):
        assert client.request(method, path, json={}, headers=keys["write"]).status_code == 403
        assert client.request(method, path, json={}, headers=keys["admin"]).status_code != 403


def test_who_may_write_may_read(client: TestClient, keys: dict[str, dict[str, str]]) -> None:
    assert client.get("/v1/datasets", headers=keys["write"]).status_code == 200


@pytest.fixture
def theirs(client: TestClient) -> dict[str, str]:
    """One of everything that has an owner, by the parameter of a path that names it."""
    with open_transaction() as tx:
        dataset = make_dataset(tx)
        job = make_job(tx, dataset.id, status="succeeded")
        model = make_trained_model(tx, job, "nowhere", [])
        stage = tx.session.scalars(select(StageRow).where(StageRow.job_id == job.id)).one()
        comparison = Comparison(
            id=new_id("comparison"),
            owner="admin",
            models=[model, model],
            request={"models": [model, model], "prompts": ["p"], "sampling": {}},
        )
        evaluation = Evaluation(
            id=new_id("evaluation"), owner="admin", models=[model], request=evaluation_request(dataset.id)
        )
        tx.session.add_all([comparison, evaluation])
        return {
            "dataset_id": dataset.id,
            "file_id": dataset.id,
            "job_id": job.id,
            "run_id": str(stage.run_id),
            "artifact_id": stage.artifacts["model"],
            "model_id": model,
            "comparison_id": comparison.id,
            "evaluation_id": evaluation.id,
            "name": "config.json",
        }


UNOWNED = {"/v1/workers", "/v1/queue", "/v1/keys", "/v1/keys/{key_id}", "/v1/detokenize"}
"""What concerns everybody, or names nothing of an owner's where it can be called without a sampler."""


def bodies(theirs: dict[str, str]) -> dict[str, tuple[int, dict[str, object]]]:
    """Path of a POST that names others' objects in its body -> what it answers, and the body."""
    model, dataset = theirs["model_id"], theirs["dataset_id"]
    return {
        "/v1/jobs": (422, {"model": model, "dataset": dataset, "method": {"type": "sft"}}),
        "/v1/comparisons": (422, {"models": [model, "tiny"], "prompts": ["p"]}),
        "/v1/evaluations": (422, {"models": [model], "judge": "tiny", "dataset": dataset}),
        "/v1/models": (422, {"name": "x", "path": "/"}),
        "/v1/completions": (404, {"model": model, "prompt": "p"}),
        "/v1/chat/completions": (404, {"model": model, "messages": [{"role": "user", "content": "p"}]}),
        "/v1/rewards": (404, {"model": model, "items": [{"prompt": "p", "response": "r"}]}),
        "/v1/tokenize": (404, {"model": model, "text": "p"}),
        "/v1/datasets": (201, {"name": "mine", "kind": "text"}),
        "/get_reward": (404, {"query": "p"}),
        "/v1/files": (422, {}),
        "/v1/fine_tuning/jobs": (422, {"model": model, "training_file": dataset}),
        "/v1/comparisons/{comparison_id}/votes": (404, {"row": 0, "preferred": "A"}),
    }


def test_another_owner_finds_nothing_by_any_route(client: TestClient, theirs: dict[str, str]) -> None:
    bob, named = make_key("read", "write", "admin", owner="bob"), bodies(theirs)
    seen = {name for _, path in every_route() for name in PARAMETER.findall(path)}
    assert seen - {"key_id"} <= set(theirs), "a new kind of id: make one of its objects in `theirs`"
    for method, path in every_route():
        where = f"{method} {path}"
        if path in UNOWNED:
            continue
        target = PARAMETER.sub(lambda found: theirs[found.group(1)], path)
        if "{" in path:
            response = client.request(method, target, headers=bob, json=named.get(path, (404, None))[1])
            assert response.status_code == 404, f"{where}: {response.status_code}"
        elif method == "GET":
            shown = {each["id"] for each in client.get(target, headers=bob).json()["data"]}
            assert shown.isdisjoint(theirs.values()), where
        else:
            assert path in named, f"say in `bodies` what {where} answers to another owner"
            status, body = named[path]
            # The one path that names a model beside the body.
            asked = {"model": theirs["model_id"]} if path == "/get_reward" else None
            response = client.request(method, target, json=body, params=asked, headers=bob)
            assert response.status_code == status, f"{where}: {response.text}"


def test_a_key_that_was_deleted_or_has_expired_is_refused_although_it_was_known(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = make_key("read")
    assert client.get("/v1/datasets", headers=headers).status_code == 200
    with open_transaction() as tx:
        # As another process does it: this one knows the key still.
        tx.session.execute(update(ApiKey).where(ApiKey.name == "test").values(deleted_at=func.now()))
    now = time.monotonic()
    monkeypatch.setattr(authentication.time, "monotonic", lambda: now + authentication.TRUSTED_SECONDS)
    assert client.get("/v1/datasets", headers=headers).status_code == 401


def test_a_known_key_is_trusted_no_longer_than_it_lasts(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "TRUSTED_SECONDS", 3600.0)
    headers = make_key("read")
    with open_transaction() as tx:
        soon = func.clock_timestamp() + timedelta(seconds=60)
        tx.session.execute(update(ApiKey).where(ApiKey.name == "test").values(expires_at=soon))
    assert client.get("/v1/datasets", headers=headers).status_code == 200
    (known,) = authentication._known.values()
    assert 0 < known.until - time.monotonic() <= 60
