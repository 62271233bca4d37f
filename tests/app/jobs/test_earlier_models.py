"""Models of earlier jobs: a job goes on with the very model that it was made with."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from core.database import open_transaction
from core.tables import Artifact
from tests.app.jobs.factories import make_model, runs_of, stage_row, work_until
from tests.app.jobs.stages import Nodes, mpo_nodes

DPO = {"type": "dpo", "sft": None, "evaluate": None}


@pytest.fixture
def nodes(model: str, dataset: str) -> Nodes:
    return mpo_nodes(model, dataset)


def create(client: TestClient, **spec: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=spec)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def resume_with(client: TestClient, job: dict[str, Any], threshold: float) -> None:
    path = f"/v1/jobs/{job['id']}"
    assert client.post(f"{path}/pause").status_code == 200
    assert client.post(f"{path}/resume", json={"parts": {"threshold": threshold}}).status_code == 200


def test_a_model_that_is_made_anew_stays_what_it_was_for_the_jobs_that_read_it(
    client: TestClient, nodes: Nodes, dataset: str
) -> None:
    earlier = create(client, stages=nodes)
    assert work_until("second") is not None
    first = f"{earlier['id']}:first"
    before = stage_row(earlier["id"], "first").artifacts["model"]
    later = create(client, model=first, dataset=dataset, method=DPO, seed=9)
    resume_with(client, earlier, 2.0)
    assert stage_row(earlier["id"], "first").artifacts == {}
    work_until()
    assert client.get(f"/v1/jobs/{later['id']}").json()["status"] == "succeeded"
    read = next(run.inputs["policy"][0] for run in runs_of(later["id"]) if run.kind == "dpo")
    assert (read["id"], read["name"]) == (before, first)
    # The name stands for another model now, and a new job for another key.
    assert stage_row(earlier["id"], "first").artifacts["model"] != before
    again = {"model": first, "dataset": dataset, "method": DPO, "seed": 9}
    planned = client.post("/v1/jobs?dry_run=true", json=again).json()["stages"]
    assert planned[-1]["key"] != stage_row(later["id"], "dpo").key


def test_another_split_keeps_the_key_of_a_model_that_was_made_anew(client: TestClient, nodes: Nodes) -> None:
    earlier = create(client, stages=nodes)
    assert work_until("second") is not None
    mine = mpo_nodes(f"{earlier['id']}:first", nodes[0]["inputs"]["data"])
    later = create(client, stages=mine, pause_after=["parts"])
    mine[3]["threshold"] = 2.0
    expected = client.post("/v1/jobs?dry_run=true", json={"stages": mine}).json()["stages"]
    resume_with(client, earlier, 0.5)
    work_until()
    response = client.post(f"/v1/jobs/{later['id']}/resume", json={"parts": {"threshold": 2.0}})
    assert response.status_code == 200, response.text
    assert {s["name"]: s["key"] for s in expected} == {
        s["name"]: stage_row(later["id"], s["name"]).key for s in expected
    }


def test_a_model_that_two_stages_share_is_not_deleted_under_the_other(
    client: TestClient, model: str, dataset: str
) -> None:
    inputs = {"policy": model, "data": dataset}
    job = create(client, stages=[{"name": n, "kind": "sft", "inputs": inputs} for n in ("one", "two")])
    work_until()
    assert stage_row(job["id"], "one").artifacts == stage_row(job["id"], "two").artifacts
    for name, other in (("one", "two"), ("two", "one")):
        refused = client.delete(f"/v1/models/{job['id']}:{name}")
        assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")
        assert f"{job['id']}:{other}" in refused.json()["detail"]
        assert client.get(f"/v1/models/{job['id']}:{name}/files").status_code == 200


def test_a_model_that_a_finished_job_was_made_with_is_kept_for_it(
    client: TestClient, model: str, dataset: str
) -> None:
    stage = {"name": "one", "kind": "sft", "inputs": {"policy": model, "data": dataset}}
    earlier = create(client, stages=[stage])
    work_until()
    name = f"{earlier['id']}:one"
    later = create(client, model=name, dataset=dataset, method=DPO)
    work_until()
    refused = client.delete(f"/v1/models/{name}")
    assert refused.json()["detail"] == f"Job {later['id']} uses this model too"
    assert client.delete(f"/v1/jobs/{later['id']}").status_code == 200
    assert client.delete(f"/v1/models/{name}").status_code == 200
    assert client.get(f"/v1/models/{name}").status_code == 404


def test_a_deleted_artifact_is_no_model(client: TestClient, model: str, dataset: str) -> None:
    stage = {"name": "one", "kind": "sft", "inputs": {"policy": model, "data": dataset}}
    job = create(client, stages=[stage])
    work_until()
    with open_transaction() as tx:
        artifact = tx.session.get_one(Artifact, stage_row(job["id"], "one").artifacts["model"])
        artifact.deleted_at = artifact.created_at
    assert client.get(f"/v1/models/{job['id']}:one/files").status_code == 404


@pytest.mark.parametrize("role", ["answers", "scores"])
def test_a_live_comparison_keeps_the_models_it_uses(
    client: TestClient, model: str, dataset: str, role: str
) -> None:
    make_model("other")
    kind = "sft" if role == "answers" else "reward_model"
    job = create(client, model=model, dataset=dataset, method={"type": kind})
    work_until()
    name = f"{job['id']}:{kind}"
    asked: dict[str, Any] = {"models": [model, name if role == "answers" else "other"], "prompts": ["a"]}
    if role == "scores":
        asked["scorer"] = {"reward_model": name}
    compared = client.post("/v1/comparisons", json=asked)
    assert compared.status_code == 202, compared.text
    for path in (f"/v1/models/{name}", f"/v1/jobs/{job['id']}"):
        refused = client.delete(path)
        assert (refused.status_code, compared.json()["id"] in refused.text) == (409, True), path
    assert client.post(f"/v1/comparisons/{compared.json()['id']}/cancel").status_code == 200
    for path in (f"/v1/models/{name}", f"/v1/jobs/{job['id']}"):
        assert client.delete(path).status_code == 200, path
