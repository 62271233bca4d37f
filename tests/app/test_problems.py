"""Every error is a problem that both a person and OpenAI's SDK can read."""

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from core.errors import Unavailable
from core.storage import Storage


def test_an_unknown_path_is_a_problem(client: TestClient) -> None:
    response = client.get("/v1/nothing", headers={"x-request-id": "mine-1"})
    problem = response.json()
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"] == "mine-1"
    assert set(problem) >= {"type", "title", "status", "detail", "code", "request_id", "errors", "error"}
    assert set(problem["error"]) == {"message", "type", "param", "code"}


def test_a_method_that_a_path_does_not_take_is_405_with_all_that_it_takes(client: TestClient) -> None:
    response = client.patch("/v1/datasets")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
    assert client.post("/v1/datasets/ds_1").headers["allow"] == "DELETE, GET"
    assert client.post("/healthz").headers["allow"] == "GET"
    assert client.post("/docs").headers["allow"] == "GET"


def test_a_request_id_that_is_no_token_is_replaced(client: TestClient) -> None:
    for given in ("", "a b", "x" * 200, "<script>"):
        answered = client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"]
        assert answered.startswith("req_")


def test_security_headers_are_on_every_answer(client: TestClient) -> None:
    for path in ("/healthz", "/v1/nothing", "/docs", "/v1/datasets"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_what_nobody_expected_is_a_500_that_tells_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr("app.jobs.service.list_events", broken)
    response = client.get("/v1/jobs/job_1/events")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert "secret" not in response.text


def test_retry_after_is_told_and_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Unavailable):
        """It is away."""

        retry_after_seconds = 1000

    def away(*_: object) -> None:
        raise Away()

    monkeypatch.setattr(Storage, "upload", away)
    response = client.post("/v1/datasets", data={"name": "x"}, files={"file": b"x"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "120")


def test_a_body_above_the_bound_is_413(client: TestClient) -> None:
    response = client.post("/v1/models", content=b" " * ((16 << 20) + 1), headers={"content-type": "a/json"})
    assert response.status_code == 413
    assert response.json()["code"] == "body_too_large"
    assert client.post("/v1/datasets", content=b" " * ((16 << 20) + 1)).status_code == 413


@pytest.mark.parametrize("path", ["/v1/datasets/%00", "/v1/datasets?after=%00", "/v1/models/%00"])
def test_nul_in_a_path_or_query_is_no_fault_of_the_server(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


def test_the_application_is_made_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPO_DATABASE_URL", raising=False)
    assert create_app().title
