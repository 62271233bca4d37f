"""Who may call what: every route, without a key, with a wrong one, and with too little scope."""

from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from app.main import ROUTERS
from tests.factories import make_key

ADMIN_ONLY = {("POST", "/v1/models"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/{key_id}")}
READING_POSTS = {"/v1/completions", "/v1/chat/completions", "/v1/rewards", "/v1/tokenize", "/v1/detokenize"}


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
