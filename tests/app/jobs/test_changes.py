"""Cancel, pause, resume with another split, delete: what a person may do to a job, and when."""

from typing import Any

from fastapi.testclient import TestClient

from core.states import RunState
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import claim, publish, runs_of, stage_row, work_until

SPLIT_AND_AFTER = ("split", "dpo", "ppo", "evaluate")


def read(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").json()
    return found


def test_cancelling_ends_the_job_and_its_runs_at_once(client: TestClient, create_job: CreateJob) -> None:
    job = create_job()
    path = f"/v1/jobs/{job['id']}"
    assert client.delete(path).json()["code"] == "not_finished"
    cancelled = client.post(f"{path}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert {stage["status"] for stage in cancelled.json()["stages"]} == {"cancelled"}
    assert {run.state for run in runs_of(job["id"])} == {RunState.CANCELLED}
    assert client.post(f"{path}/cancel").status_code == 200
    for change in ("pause", "resume"):
        assert client.post(f"{path}/{change}").status_code == 409
    assert client.delete(path).json() == {"id": job["id"], "object": "job", "deleted": True}
    assert client.get(path).status_code == 404
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_job_that_waits_on_a_cancelled_or_paused_one_gets_a_run_of_its_own(
    client: TestClient, create_job: CreateJob
) -> None:
    first, second, third = create_job(), create_job(), create_job()
    assert runs_of(second["id"]) == []
    client.post(f"/v1/jobs/{first['id']}/cancel")
    assert [run.state for run in runs_of(second["id"])] == ["queued"]
    client.post(f"/v1/jobs/{second['id']}/pause")
    assert [run.state for run in runs_of(second["id"])] == ["paused"]
    assert [run.state for run in runs_of(third["id"])] == ["queued"]
    work_until()
    assert read(client, third)["status"] == "succeeded"
    client.post(f"/v1/jobs/{second['id']}/resume")
    assert read(client, second)["status"] == "succeeded"


def test_a_paused_job_is_resumed_with_another_split(client: TestClient, create_job: CreateJob) -> None:
    job = create_job(pause_after=["split"])
    path = f"/v1/jobs/{job['id']}"
    assert client.post(f"{path}/resume").json()["code"] == "not_paused"
    work_until()
    paused = read(client, job)
    assert (paused["status"], paused["pause"]["reason"], paused["pause"]["stage"]) == (
        "paused",
        "pause_after",
        "split",
    )
    before = {name: stage_row(job["id"], name).key for name in (*SPLIT_AND_AFTER, "sft", "score")}
    for wrong in (
        {"spilt": {}},
        {"spilt": None},
        {"split": {"threshold": 1, "quantile": 0.5}},
        {"split": {"gamma": 1}},
    ):
        assert client.post(f"{path}/resume", json=wrong).status_code == 422
    resumed = client.post(f"{path}/resume", json={"split": {"threshold": 0.75}}).json()
    assert (resumed["status"], resumed["pause"]) == ("running", None)
    assert resumed["method"]["split"]["threshold"] == 0.75
    after = {name: stage_row(job["id"], name).key for name in before}
    assert {name for name in before if before[name] != after[name]} == set(SPLIT_AND_AFTER)
    # As if the job had been made with that split from the beginning.
    twin = client.post("/v1/jobs?dry_run=true", json=_spec(job, threshold=0.75)).json()
    assert {stage["name"]: stage["key"] for stage in twin["stages"] if stage["name"] in after} == after
    work_until()
    done = read(client, job)
    assert (done["status"], done["progress"]) == ("succeeded", {"fraction": 1.0, "eta_seconds": 0.0})
    assert client.post(f"{path}/cancel").json()["code"] == "job_finished"


def test_another_split_begins_anew_what_had_begun(client: TestClient, create_job: CreateJob) -> None:
    job = create_job()
    path = f"/v1/jobs/{job['id']}"
    assert work_until("dpo") is not None
    dpo = stage_row(job["id"], "dpo").run_id
    paused = client.post(f"{path}/pause").json()
    assert (paused["status"], paused["pause"]["reason"]) == ("paused", "user")
    assert client.post(f"{path}/pause").status_code == 200
    assert claim("gpu") is None
    client.post(f"{path}/resume", json={"split": {"quantile": 0.25}})
    assert next(run.state for run in runs_of(job["id"]) if run.id == dpo) == "cancelled"
    assert (stage_row(job["id"], "split").status, stage_row(job["id"], "dpo").status) == ("queued", "waiting")
    split = claim("cpu")
    assert split is not None
    publish(split, {})
    assert stage_row(job["id"], "dpo").run_id not in (None, dpo)


def test_a_person_pauses_all_of_a_job_that_waits_at_one_stage_and_resumes_it_to_wait_there(
    client: TestClient, create_job: CreateJob
) -> None:
    job = create_job(pause_after=["split"])
    path = f"/v1/jobs/{job['id']}"
    assert work_until("sft") is not None
    assert read(client, job)["pause"]["reason"] == "pause_after"
    paused = client.post(f"{path}/pause").json()
    assert (paused["status"], paused["pause"]["reason"]) == ("paused", "user")
    assert claim("gpu") is None
    assert {run.state for run in runs_of(job["id"])} == {"succeeded", "paused"}
    resumed = client.post(f"{path}/resume").json()
    assert (resumed["status"], resumed["pause"]["stage"]) == ("paused", "split")
    assert work_until() is None
    assert {"succeeded", "waiting"} == {stage["status"] for stage in read(client, job)["stages"]}
    client.post(f"{path}/resume")
    work_until()
    assert read(client, job)["status"] == "succeeded"


def _spec(job: dict[str, Any], **split: float) -> dict[str, Any]:
    method = {"type": "mpo", "split": split}
    return {"model": job["model"], "dataset": job["dataset"], "method": method}
