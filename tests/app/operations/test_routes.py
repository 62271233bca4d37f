"""Health, readiness, metrics, queue, workers and keys."""

import time

import pytest
import redis
from fastapi.testclient import TestClient

from app.operations import readiness
from core.database import open_transaction
from core.heartbeats import beat
from core.sampling import ALIVE
from tests.factories import upload

CHECKS = {"postgres", "redis", "store", "migrations", "workers.cpu", "workers.gpu", "sampler"}


@pytest.fixture(autouse=True)
def _no_kept_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "KEPT_SECONDS", 0)


def test_health_needs_no_key(client: TestClient) -> None:
    del client.headers["authorization"]
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 503
    assert client.get("/metrics").status_code == 200
    assert client.get("/openapi.json").status_code == 200


def test_readiness_names_what_is_missing_until_all_is_there(client: TestClient, redis_url: str) -> None:
    response = client.get("/readyz")
    checks = response.json()["checks"]
    assert response.status_code == 503
    assert set(checks) == CHECKS
    assert {name for name in CHECKS if not checks[name]["ok"]} == {"workers.cpu", "workers.gpu", "sampler"}
    with open_transaction() as tx:
        beat(tx, "wrk_1", "cpu", 2)
        beat(tx, "wrk_2", "gpu", 1)
    with redis.Redis.from_url(redis_url) as server:
        server.set(ALIVE, "1", ex=10)
    response = client.get("/readyz")
    assert (response.status_code, response.json()["ready"]) == (200, True)


def test_a_lost_database_is_said_everywhere(client: TestClient, settings_env: pytest.MonkeyPatch) -> None:
    from core import database
    from core.settings import settings

    settings_env.setenv("MPO_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    settings.cache_clear()
    database.dispose()
    checks = client.get("/readyz").json()["checks"]
    assert not checks["postgres"]["ok"]
    assert not checks["migrations"]["ok"]
    assert checks["redis"]["ok"]
    response = client.get("/v1/datasets")
    assert response.status_code == 503
    assert response.json()["code"] == "database_unavailable"
    assert 0 < int(response.headers["retry-after"]) <= 120
    assert client.get("/metrics").status_code == 200
    assert client.get("/healthz").status_code == 200


def test_queue_workers_and_metrics_show_what_waits(client: TestClient) -> None:
    upload(client)
    with open_transaction() as tx:
        beat(tx, "wrk_1", "cpu", 2)
    cpu, gpu = client.get("/v1/queue").json()["slots"]
    assert (cpu["slot"], cpu["queued"], cpu["running"], cpu["workers"]) == ("cpu", 1, 0, 1)
    assert cpu["oldest_queued_seconds"] >= 0
    assert (gpu["queued"], gpu["oldest_queued_seconds"]) == (0, None)
    (worker,) = client.get("/v1/workers").json()["data"]
    assert (worker["id"], worker["slot"], worker["concurrency"]) == ("wrk_1", "cpu", 2)
    text = client.get("/metrics").text
    assert 'mpo_queue_runs{slot="cpu",state="queued"} 1.0' in text
    assert 'mpo_http_requests_total{method="POST",route="/v1/datasets",status="202"} 1.0' in text


def test_a_key_opens_what_its_scopes_say_until_it_is_deleted(client: TestClient) -> None:
    response = client.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "owner": "team"})
    key = response.json()
    assert response.status_code == 201
    assert set(key) == {"id", "object", "key", "prefix", "name", "scopes", "owner", "expires_at"}
    assert key["key"].startswith(key["prefix"])
    assert key["owner"] == "team"
    headers = {"Authorization": f"Bearer {key['key']}"}
    assert client.get("/v1/datasets", headers=headers).status_code == 200
    assert client.post("/v1/keys", json={"scopes": ["read"]}, headers=headers).status_code == 403
    assert client.delete(f"/v1/keys/{key['id']}").json()["deleted"]
    assert client.get("/v1/datasets", headers=headers).status_code == 401
    assert client.delete(f"/v1/keys/{key['id']}").status_code == 404


def test_an_expired_key_opens_nothing(client: TestClient) -> None:
    now = int(time.time())
    for expires_at, status in ((now - 1, 401), (now + 60, 200)):
        key = client.post("/v1/keys", json={"scopes": ["read"], "expires_at": expires_at}).json()
        assert (key["expires_at"], key["owner"]) == (expires_at, "admin")
        headers = {"Authorization": f"Bearer {key['key']}"}
        assert client.get("/v1/datasets", headers=headers).status_code == status
