"""Reading jobs: lists and their filters, polls, events, metrics, reports, runs, artifacts."""

from math import nan
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.jobs.metrics import thinned
from core import queue
from core.aftermath import report_progress
from core.database import open_transaction
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import make_dataset, publish, work_until


def test_jobs_are_found_by_what_they_are(client: TestClient, create_job: CreateJob) -> None:
    first = create_job(labels={"team": "a:b"})
    second = create_job(labels={"team": "c", "try": "2"})
    ids = [second["id"], first["id"]]

    def found(query: str) -> list[str]:
        response = client.get(f"/v1/jobs?{query}")
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["data"]]

    assert found("") == found("method=mpo&status=queued") == found(f"dataset={first['dataset']}") == ids
    assert found("order=asc") == ids[::-1]
    assert found("label=team:a:b") == [first["id"]]
    assert found("label=team:c&label=try:2") == [second["id"]]
    assert found("status=failed") == found("method=dpo") == found("label=team:c&label=try:3") == []
    page = client.get("/v1/jobs?limit=1").json()
    assert (page["last_id"], page["has_more"]) == (second["id"], True)
    assert found(f"limit=1&after={page['last_id']}") == [first["id"]]
    assert client.get("/v1/jobs?label=team").json()["errors"][0]["loc"] == ["query", "label"]
    assert client.get("/v1/jobs?status=done").status_code == 422


def test_a_running_job_tells_how_far_it_is(client: TestClient, create_job: CreateJob) -> None:
    job = create_job()
    path = f"/v1/jobs/{job['id']}"
    assert client.get(f"{path}/report").json()["code"] == "not_finished"
    dpo = work_until("dpo")
    assert dpo is not None
    progress = {"step": 5, "total_steps": 20, "fraction": 0.25, "eta_seconds": 30.0}
    steps = {step: {"loss": 1 / step, "margin": float(step)} for step in range(1, 6)}
    with open_transaction() as tx:
        queue.record_progress(tx, dpo, progress, steps, "training\n")
    report_progress(dpo.id)
    first = client.get(path)
    shown = _stage(first.json(), "dpo")
    assert (first.json()["status"], first.json()["queue_position"]) == ("running", 1)
    assert (shown["status"], shown["run_id"], shown["attempt"]) == ("running", dpo.id, 1)
    assert shown["progress"] == progress
    assert shown["metrics"] == {"loss": 0.2, "margin": 5.0}
    assert 0 < first.json()["progress"]["fraction"] < 1
    assert first.json()["progress"]["eta_seconds"] > 30
    # Nothing has changed, so nothing is sent: no number hangs on the clock.
    assert client.get(path, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    metrics = client.get(f"{path}/metrics?stage=dpo&names=loss&points=3").json()
    assert metrics["data"] == [
        {"stage": "dpo", "name": "loss", "steps": [1, 3, 5], "values": [1, 1 / 3, 0.2]}
    ]
    assert client.get(f"{path}/metrics?stage=dop").json()["errors"][0]["loc"] == ["query", "stage"]
    assert client.get(f"/v1/runs/{dpo.id}/log").text == "training\n"
    run = client.get(f"/v1/runs/{dpo.id}").json()
    assert (run["status"], run["job"], run["attempts"][0]["run_id"]) == ("running", job["id"], dpo.id)


def test_events_come_in_order_and_go_on_after_the_last_known(
    client: TestClient, create_job: CreateJob
) -> None:
    job = create_job()
    work_until("split")
    path = f"/v1/jobs/{job['id']}/events"
    page = client.get(f"{path}?limit=3").json()
    assert [event["id"] for event in page["data"]] == [1, 2, 3]
    assert page["data"][0]["type"] == "job.created"
    assert set(page["data"][0]) == {"id", "object", "type", "created_at", "stage", "message", "data"}
    rest = client.get(f"{path}?after={page['last_id']}&limit=100").json()
    assert [event["id"] for event in rest["data"]] == list(range(4, 4 + len(rest["data"])))
    assert not rest["has_more"]


def test_a_report_holds_what_validation_found_in_both_datasets(
    client: TestClient, create_job: CreateJob, tmp_path: Path
) -> None:
    others = make_dataset(tmp_path, report={"rows": 8, "of": "others"})
    job = create_job(
        dataset=make_dataset(tmp_path, report={"rows": 8, "of": "pairs"}),
        eval_dataset=others,
        method={"type": "sft"},
    )
    work_until()
    data = client.get(f"/v1/jobs/{job['id']}/report").json()["data"]
    assert (data["dataset"]["of"], data["eval_dataset"]["of"]) == ("pairs", "others")


def test_a_finished_job_has_a_report_and_artifacts_with_their_lineage(
    client: TestClient, create_job: CreateJob
) -> None:
    job = create_job()
    score = work_until("score")
    assert score is not None
    publish(score, {}, {"accuracy": 0.75, "weak": False})
    work_until()
    path = f"/v1/jobs/{job['id']}"
    done = client.get(path).json()
    assert client.get(f"{path}?wait=60").json()["status"] == "succeeded"
    assert client.get(f"{path}/report").json()["gaps"] == {"accuracy": 0.75, "weak": False}
    made = _stage(done, "score")["artifacts"]["scores"]
    artifact = client.get(f"/v1/artifacts/{made}").json()
    assert (artifact["object"], artifact["job_id"], artifact["run_id"]) == ("artifact", job["id"], score.id)
    assert {source["name"] for source in artifact["inputs"]} == {"reward_models", "data"}
    assert client.get("/v1/artifacts/art_x").status_code == 404
    assert client.get("/v1/runs/run_x").status_code == 404


def test_a_trained_model_leads_back_to_the_upload(
    client: TestClient, create_job: CreateJob, tmp_path: Path
) -> None:
    job = create_job(dataset=make_dataset(tmp_path, sha256="a" * 64))
    work_until()
    done = client.get(f"/v1/jobs/{job['id']}").json()
    seen: dict[str, str] = {}
    ahead = [_stage(done, "ppo")["artifacts"]["model"]]
    while ahead:
        response = client.get(f"/v1/artifacts/{ahead.pop()}")
        assert response.headers["ETag"]
        for source in response.json()["inputs"]:
            if source["kind"] == "artifact" and source["id"] not in seen:
                assert client.get(f"/v1/artifacts/{source['id']}").json()["sha256"] == source["sha256"]
                ahead.append(source["id"])
            seen[source["id"]] = source["sha256"]
    uploaded = client.get(f"/v1/datasets/{job['dataset']}").json()
    assert uploaded["sha256"] == "a" * 64
    assert seen[uploaded["id"]] == uploaded["sha256"]
    assert seen[job["model"]] == "1" * 64


@pytest.mark.parametrize("points", [1, 2, 3, 4, 10])
def test_a_thinned_metric_keeps_its_ends_and_extremes(points: int) -> None:
    values: list[float | None] = [None, *(float(n % 7) for n in range(97)), nan, 1.0]
    values[33], values[71] = 99.0, -99.0
    kept = thinned(values, points)
    assert len(kept) <= points
    assert kept == sorted(set(kept))
    assert set(kept) >= set([99, 0, 33, 71][:points])
    assert thinned(values[:points], points) == list(range(points))


def test_a_finished_job_is_deleted_once_and_found_no_more(client: TestClient, create_job: CreateJob) -> None:
    path = f"/v1/jobs/{create_job()['id']}"
    early = client.delete(path)
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
    deleted = client.delete(path).json()
    assert (deleted["object"], deleted["deleted"]) == ("job", True)
    for method, below in [
        ("DELETE", ""),
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/metrics"),
        ("POST", "/cancel"),
    ]:
        assert client.request(method, path + below).status_code == 404, below
    assert client.get("/v1/jobs").json()["data"] == []


def _stage(job: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in job["stages"] if stage["name"] == name)
