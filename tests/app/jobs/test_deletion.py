"""Deleting a job frees the bytes that nothing else uses, and never under somebody who reads them."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from core.database import open_transaction
from core.storage import storage
from core.tables import Artifact, StageRow
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import work_until
from workers.sweep import sweep_all

NOW, WEEK, HOUR = timedelta(0), timedelta(days=7), timedelta(hours=1)


def run_files(store: Path) -> list[Path]:
    return [path for path in (store / "runs").rglob("*") if path.is_file()]


def test_a_deleted_job_s_bytes_go_with_the_sweep_and_shared_ones_with_the_last_job(
    client: TestClient, create_job: CreateJob, store: Path
) -> None:
    first = create_job(method={"type": "sft"})
    work_until()
    other = {"type": "sft", "sft": {"learning_rate": 0.5}}
    second = create_job(method=other)
    work_until()
    both = len(run_files(store))
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 200
    # Whoever has begun to read them has an hour to end.
    assert sweep_all(HOUR, WEEK).places == 0
    assert len(run_files(store)) == both
    freed = sweep_all(NOW, WEEK)
    assert freed.bytes > 0
    assert 0 < len(run_files(store)) < both
    assert client.get(f"/v1/models/{second['id']}:sft/files").status_code == 200
    repeated = create_job(method=other)
    assert all(stage["cached"] for stage in repeated["stages"])
    for job in (second, repeated):
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 200
    sweep_all(NOW, WEEK)
    assert run_files(store) == []


def test_a_download_that_has_begun_ends_though_its_model_is_deleted_and_swept(
    client: TestClient, create_job: CreateJob, store: Path
) -> None:
    job = create_job(method={"type": "sft"})
    work_until()
    with open_transaction() as tx:
        stage = tx.session.get_one(StageRow, (job["id"], "sft"))
        location = tx.session.get_one(Artifact, stage.artifacts["model"]).location
    content = (store / location).read_bytes()
    reading = storage().read_chunks(location)
    assert client.delete(f"/v1/models/{job['id']}:sft").status_code == 200
    assert sweep_all(HOUR, WEEK).places == 0
    assert sweep_all(NOW, WEEK).places == 1
    assert not (store / location).exists()
    assert b"".join(reading) == content


def test_a_deleted_result_is_made_anew(client: TestClient, create_job: CreateJob) -> None:
    job = create_job(method={"type": "sft"})
    work_until()
    assert client.delete(f"/v1/models/{job['id']}:sft").status_code == 200
    again: dict[str, Any] = create_job(method={"type": "sft"})
    cached = {stage["name"]: stage["cached"] for stage in again["stages"]}
    assert cached["hold_out"]
    assert not cached["sft"]
    work_until()
    assert client.get(f"/v1/jobs/{again['id']}").json()["status"] == "succeeded"
