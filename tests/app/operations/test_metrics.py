"""/metrics in Prometheus's own parser: the figures are there, and they move with what happens."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.operations import metrics, readiness
from core import database, queue, tallies
from core.database import open_transaction
from core.heartbeats import beat
from core.settings import settings
from tests.factories import upload

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def _no_kept_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", -1)
    monkeypatch.setattr(readiness, "KEPT_SECONDS", -1)
    monkeypatch.setattr(tallies, "_counted", tallies.defaultdict(float))


@pytest.fixture
def frozen_postgres(servers: Path, client: TestClient) -> Iterator[None]:
    """A server that takes connections and answers none."""
    pid = int((servers / "data" / "postmaster.pid").read_text().split()[0])
    database.dispose()
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


def read(client: TestClient) -> Figures:
    found: Figures = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def figure(found: Figures, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_a_run_s_way_through_the_queue_moves_the_figures(client: TestClient) -> None:
    upload(client)
    with open_transaction() as tx:
        beat(tx, "wrk_1", "cpu", 2)
    found = read(client)
    assert figure(found, "mpo_up", part="postgres") == figure(found, "mpo_up", part="redis") == 1
    assert figure(found, "mpo_queue_runs", slot="cpu", state="queued") == 1
    assert figure(found, "mpo_queue_oldest_seconds", slot="cpu") > 0
    assert figure(found, "mpo_worker_slots", slot="cpu") == 2
    assert figure(found, "mpo_jobs", status="queued") == 0
    assert figure(found, "mpo_leases_lost_total") == 0
    assert figure(found, "mpo_sampler_requests") == figure(found, "mpo_sampler_up") == 0
    requests = {"method": "POST", "route": "/v1/datasets"}
    assert figure(found, "mpo_http_requests_total", status="202", **requests) == 1
    assert figure(found, "mpo_http_request_seconds_count", **requests) == 1

    with open_transaction() as tx:
        claimed = queue.claim(tx, "cpu", "wrk_1")
    assert claimed is not None
    tallies.observe(tallies.CLAIM_SECONDS, 0.04, slot="cpu")
    tallies.observe(tallies.CLAIM_SECONDS, 7000.0, slot="cpu")
    tallies.observe(tallies.STAGE_SECONDS, 3.0, kind="validate_dataset")
    tallies.count(tallies.CRASHES, kind="ppo")
    tallies.count(tallies.LEASES_LOST, 2)
    tallies.flush()
    found = read(client)
    assert figure(found, "mpo_queue_runs", slot="cpu", state="queued") == 0
    assert figure(found, "mpo_queue_runs", slot="cpu", state="running") == 1
    buckets = [
        figure(found, "mpo_claim_seconds_bucket", slot="cpu", le=le) for le in ("0.025", "0.05", "+Inf")
    ]
    assert buckets == [0, 1, 2]
    assert figure(found, "mpo_claim_seconds_sum", slot="cpu") == pytest.approx(7000.04)
    assert figure(found, "mpo_stage_seconds_count", kind="validate_dataset") == 1
    assert figure(found, "mpo_run_crashes_total", kind="ppo") == 1
    assert figure(found, "mpo_leases_lost_total") == 2


def test_figures_of_requests_are_told_while_the_database_is_away(
    client: TestClient, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("MPO_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    settings_env.setenv("MPO_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    database.dispose()
    client.get("/v1/datasets")
    found = read(client)
    assert figure(found, "mpo_up", part="postgres") == figure(found, "mpo_up", part="redis") == 0
    assert figure(found, "mpo_http_requests_total", method="GET", route="/v1/datasets", status="503") == 1
    assert not any(name.startswith("mpo_queue") for name, _ in found)


def test_a_frozen_database_holds_up_neither_readiness_nor_metrics(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, frozen_postgres: None
) -> None:
    monkeypatch.setattr(readiness, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.5)
    # More often than there are threads: each must not take another one for itself.
    for _ in range(3):
        checks = client.get("/readyz").json()["checks"]
        assert checks["postgres"]["message"].startswith("has not answered for ")
        assert not checks["migrations"]["ok"]
        assert checks["redis"] == {"ok": True, "message": "answers"}
        assert checks["store"]["ok"]
        assert figure(read(client), "mpo_up", part="postgres") == 0
    assert client.get("/healthz").status_code == 200


_PROCESS = """
import asyncio, sys
from app.operations.metrics import Metrics
from core.settings import settings
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.observe({"method": "GET"}, 200, 0.01)
print(asyncio.run(metrics.text()).decode())
"""


def test_processes_behind_one_port_add_up_their_requests(
    settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings_env.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    told = ""
    for count in (2, 1):
        command = [sys.executable, "-c", _PROCESS, str(count)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'mpo_http_requests_total{method="GET",route="unmatched",status="200"} 3.0' in told
    assert 'mpo_http_request_seconds_count{method="GET",route="unmatched"} 3.0' in told
