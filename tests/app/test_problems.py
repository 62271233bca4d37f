"""Every error is a problem that both a person and OpenAI's SDK can read."""

from fastapi.testclient import TestClient


def test_an_unknown_path_is_a_problem(client: TestClient) -> None:
    response = client.get("/v1/nothing", headers={"x-request-id": "mine-1"})
    problem = response.json()
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"] == "mine-1"
    assert set(problem) >= {"type", "title", "status", "detail", "code", "request_id", "errors", "error"}
    assert set(problem["error"]) == {"message", "type", "param", "code"}
