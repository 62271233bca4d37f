"""What is known of the evaluated models: their training data, who judges them, and that they are kept."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from core.database import open_session, open_transaction
from core.retention import let_go
from core.storage import storage
from core.sweeping import Sweep
from core.tables import Artifact, Run
from tests.app.conftest import CreateJob
from tests.app.evaluations.performing import asked, held_out, perform, register_models, write_models
from tests.app.jobs.factories import make_dataset, make_model, pairs, stage_row, work_until
from tests.factories import upload, validate

NOW = timedelta(0)
DPO = {"type": "dpo", "sft": None, "evaluate": None}


@pytest.fixture
def judge(client: TestClient) -> str:
    return make_model("judge", kind="reward_model")


def create(client: TestClient, dataset: str, *models: str, **changes: Any) -> dict[str, Any]:
    body = {"models": [*models], "judge": "judge", "dataset": dataset, "prompts": 4, **changes}
    response = client.post("/v1/evaluations", json=body)
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    return made


def training_of(evaluation: dict[str, Any]) -> dict[str, list[str]]:
    """Names of training data by role, of the evaluation's run."""
    with open_session() as session:
        inputs = session.get_one(Run, evaluation["run_id"]).inputs
    return {
        role: [source["name"] for source in sources]
        for role, sources in inputs.items()
        if role.startswith("training_of_")
    }


def test_what_a_job_held_out_is_no_training_data(
    client: TestClient, create_job: CreateJob, model: str, dataset: str, judge: str
) -> None:
    job = create_job()
    work_until()
    made = create(client, dataset, model, f"{job['id']}:ppo", f"{job['id']}:sft")
    train = [f"{job['id']}:hold_out.train"]
    assert training_of(made) == {"training_of_1": train, "training_of_2": train}
    with open_session() as session:
        run = session.get_one(Run, made["run_id"])
    assert run.inputs["training_of_1"][0]["id"] == stage_row(job["id"], "hold_out").artifacts["train"]


def test_models_of_earlier_jobs_bring_what_those_were_trained_on(
    client: TestClient, create_job: CreateJob, tmp_path: Path, dataset: str, judge: str
) -> None:
    first = create_job(method={"type": "sft"})
    work_until()
    second = create_job(model=f"{first['id']}:sft", dataset=make_dataset(tmp_path, pairs(9)), method=DPO)
    work_until()
    made = create(client, dataset, f"{second['id']}:dpo")
    assert training_of(made) == {
        "training_of_0": [f"{second['id']}:hold_out.train", f"{first['id']}:hold_out.train"]
    }


def test_rows_that_no_hold_out_has_parted_are_the_dataset_s(
    client: TestClient, model: str, dataset: str, judge: str
) -> None:
    stage = {"name": "one", "kind": "sft", "inputs": {"policy": model, "data": dataset}}
    job = client.post("/v1/jobs", json={"stages": [stage]}).json()
    work_until()
    assert training_of(create(client, dataset, f"{job['id']}:one")) == {"training_of_0": [dataset]}


def test_training_data_that_is_gone_is_not_known(
    client: TestClient, model: str, dataset: str, tmp_path: Path, judge: str
) -> None:
    stage = {"name": "one", "kind": "sft", "inputs": {"policy": model, "data": dataset}}
    job = client.post("/v1/jobs", json={"stages": [stage]}).json()
    work_until()
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 200
    other = make_dataset(tmp_path)
    assert training_of(create(client, other, f"{job['id']}:one")) == {}


def test_lineage_tells_whether_the_judge_saw_other_data(
    client: TestClient, create_job: CreateJob, dataset: str, tmp_path: Path, judge: str
) -> None:
    job = create_job()
    other = create_job(dataset=make_dataset(tmp_path, pairs(9)), method={"type": "reward_model"})
    copy = create_job(dataset=make_dataset(tmp_path), method={"type": "reward_model"})
    work_until()
    policy, same = f"{job['id']}:ppo", f"{job['id']}:judge"
    apart, upload_again = f"{other['id']}:reward_model", f"{copy['id']}:reward_model"
    found = {
        name: create(client, dataset, policy, judge=name)["judge_independence"]
        for name in (same, apart, upload_again, "judge")
    }
    assert found == {
        same: "other_seed",
        apart: "other_data",
        upload_again: "other_seed",
        "judge": "other_seed",
    }
    # Nobody here knows what a base model was trained on: its owner may.
    claimed = create(client, dataset, policy, judge_independence="other_data")
    assert claimed["judge_independence"] == "other_data"
    body = {"models": [policy], "judge": same, "dataset": dataset, "judge_independence": "other_data"}
    refused = client.post("/v1/evaluations", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["body", "judge_independence"])
    assert "lineage tells other_seed" in refused.json()["detail"]


def test_a_judge_that_a_model_was_trained_to_please_is_warned_of(
    client: TestClient, create_job: CreateJob, dataset: str, judge: str
) -> None:
    job = create_job()
    work_until()
    against = f"{job['id']}:reward_model"
    made = create(client, dataset, f"{job['id']}:sft", f"{job['id']}:ppo", judge=against)
    assert made["warnings"] == [
        f"The judge is the reward model that {job['id']}:ppo was trained against: its verdict is no evidence."
    ]
    assert create(client, dataset, f"{job['id']}:ppo")["warnings"] == []


@pytest.mark.parametrize("role", ["models", "sft", "dpo", "judge", "reward_model"])
def test_a_live_evaluation_keeps_the_models_it_uses(
    client: TestClient, model: str, dataset: str, judge: str, role: str
) -> None:
    kind = "reward_model" if role in ("judge", "reward_model") else "sft"
    job = client.post("/v1/jobs", json={"model": model, "dataset": dataset, "method": {"type": kind}}).json()
    work_until()
    name = f"{job['id']}:{kind}"
    changes = {} if role == "models" else {role: name}
    made = create(client, dataset, name if role == "models" else model, **changes)
    for path in (f"/v1/models/{name}", f"/v1/jobs/{job['id']}"):
        refused = client.delete(path)
        assert (refused.status_code, made["id"] in refused.text) == (409, True), path
    assert client.post(f"/v1/evaluations/{made['id']}/cancel").status_code == 200
    for path in (f"/v1/models/{name}", f"/v1/jobs/{job['id']}"):
        assert client.delete(path).status_code == 200, path


def test_a_base_model_is_kept_too(client: TestClient, model: str, dataset: str, judge: str) -> None:
    made = create(client, dataset, model)
    for name in (model, judge):
        refused = client.delete(f"/v1/models/{name}")
        assert (refused.status_code, made["id"] in refused.text) == (409, True)
    assert client.post(f"/v1/evaluations/{made['id']}/cancel").status_code == 200
    assert client.delete(f"/v1/models/{judge}").status_code == 200


def test_report_and_samples_outlive_every_sweep(client: TestClient, tmp_path: Path) -> None:
    register_models(write_models(tmp_path / "models"))
    dataset = held_out(tmp_path)
    made = client.post("/v1/evaluations", json=asked(dataset, prompts=3)).json()
    perform(made["run_id"], tmp_path)
    # The dataset may go: what was measured on it stays.
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 200
    for _ in range(2):
        let_go(NOW, NOW)
        Sweep(storage(), NOW, NOW).runs([made["run_id"]])
    with open_session() as session:
        kept = select(Artifact.output).where(Artifact.run_id == made["run_id"], Artifact.deleted_at.is_(None))
        assert set(session.scalars(kept)) == {"report", "samples"}
    assert len(client.get(f"/v1/evaluations/{made['id']}/samples").json()["data"]) == 3


def test_rows_that_a_live_evaluation_reads_outlive_their_dataset(client: TestClient, tmp_path: Path) -> None:
    register_models(write_models(tmp_path / "models"))
    dataset = upload(client)
    validate(dataset, tmp_path)
    made = client.post("/v1/evaluations", json=asked(dataset, prompts=2)).json()
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 200
    with open_transaction() as tx:
        rows = tx.session.scalars(select(Artifact).where(Artifact.output == "rows")).one()
    sweep = Sweep(storage(), NOW, NOW)
    sweep.runs([rows.run_id])
    assert (storage().exists(rows.location), sweep.freed.waiting) == (True, 1)
    perform(made["run_id"], tmp_path)
    assert client.get(f"/v1/evaluations/{made['id']}").json()["status"] == "succeeded"
    sweep.runs([rows.run_id])
    assert not storage().exists(rows.location)
