"""Presets beside mpo: each runs, can be sent again, and says what it has not."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from mpo.plan import SEEN_BY_SFT
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import work_until


def test_a_job_that_scores_nothing_says_so(client: TestClient, create_job: CreateJob) -> None:
    job = create_job(method={"type": "dpo"})
    for what in ("reward-gaps", "reward-gaps/preview?threshold=1", "pairs"):
        response = client.get(f"/v1/jobs/{job['id']}/{what}")
        assert (response.status_code, response.json()["code"]) == (409, "no_scores")
        assert response.headers["x-should-retry"] == "false"


def test_a_reward_model_on_the_sft_is_warned_about_before_and_after(
    client: TestClient, spec: dict[str, Any]
) -> None:
    body = spec | {"method": {"type": "mpo", "reward_model": {"backbone": "sft"}}}
    planned = client.post("/v1/jobs?dry_run=true", json=body).json()["stages"]
    assert [stage["name"] for stage in planned if SEEN_BY_SFT in stage["problems"]] == ["score"]
    job = client.post("/v1/jobs", json=body).json()
    events = client.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    assert [event["stage"] for event in events if event["type"] == "stage.warning"] == ["score"]


@pytest.mark.parametrize("type_", ["sft", "reward_model", "dpo", "ppo"])
def test_every_preset_runs_and_its_method_can_be_sent_again(
    client: TestClient, create_job: CreateJob, type_: str
) -> None:
    job = create_job(method={"type": type_})
    work_until()
    assert client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded"
    assert [found["id"] for found in client.get(f"/v1/jobs?method={type_}").json()["data"]] == [job["id"]]
    again = create_job(method=job["method"])
    assert again["method"] == job["method"]
    assert all(stage["cached"] for stage in again["stages"])
    assert client.get(f"/v1/jobs/{job['id']}/report").json()["gaps"] is None


def test_a_preset_without_a_split_takes_none_at_resume(client: TestClient, create_job: CreateJob) -> None:
    job = create_job(method={"type": "sft"}, pause_after=["hold_out"])
    work_until()
    response = client.post(f"/v1/jobs/{job['id']}/resume", json={"split": {"threshold": 1}})
    assert (response.status_code, response.json()["errors"][0]["loc"]) == (422, ["body", "split"])
