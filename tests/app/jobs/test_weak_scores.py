"""Several scores in a job: a weak one is accepted by itself, and never for another."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.jobs.factories import SLOTS, claim, publish
from tests.app.jobs.stages import Nodes, mpo_nodes, node

WEAK = {"weak": True, "weak_reason": "no better than chance"}


@pytest.fixture
def nodes(model: str, dataset: str) -> Nodes:
    """Two scores; the second one's key differs by the lengths that it reads."""
    first = mpo_nodes(model, dataset)
    score = {**node(first, "gaps"), "name": "gaps2", "max_prompt_tokens": 9}
    split = {**node(first, "parts"), "name": "parts2", "inputs": {"scores": "gaps2", "data": "rows"}}
    return [*first, score, split]


def create(client: TestClient, nodes: Nodes) -> str:
    response = client.post("/v1/jobs", json={"stages": nodes})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def work(hold: str = "") -> Any:
    """Perform all runs, every score weakly; the run of the stage `hold` is returned, unpublished."""
    held = None
    while (claimed := next((c for slot in SLOTS if (c := claim(slot)) is not None), None)) is not None:
        if claimed.subject_id == hold:
            held = claimed
        else:
            publish(claimed, {}, WEAK if claimed.kind == "score" else {})
    return held


def read(client: TestClient, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return job


def test_a_second_weak_score_is_asked_about_too(client: TestClient, nodes: Nodes) -> None:
    job_id = create(client, nodes)
    work()
    assert read(client, job_id)["pause"]["stage"] == "gaps"
    client.post(f"/v1/jobs/{job_id}/resume")
    work()
    paused = read(client, job_id)
    assert (paused["status"], paused["pause"]["stage"]) == ("paused", "gaps2")
    assert {s["name"]: s["status"] for s in paused["stages"]}["parts2"] == "waiting"
    client.post(f"/v1/jobs/{job_id}/resume")
    work()
    assert read(client, job_id)["status"] == "succeeded"


def test_accepting_one_weak_score_saves_no_job_that_another_fails(client: TestClient, nodes: Nodes) -> None:
    node(nodes, "gaps2")["on_weak"] = "fail"
    job_id = create(client, nodes)
    held = work("gaps2")
    assert read(client, job_id)["pause"]["stage"] == "gaps"
    client.post(f"/v1/jobs/{job_id}/resume")
    publish(held, {}, WEAK)
    failed = read(client, job_id)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "weak_reward_model")


@pytest.mark.parametrize("accepted_before", [True, False])
def test_pairs_that_are_scored_anew_are_asked_about_anew(
    client: TestClient, nodes: Nodes, accepted_before: bool
) -> None:
    # gaps2 scores by a reward model on the first split's easy pairs, so another split leads to another score.
    reads = {"backbone": node(nodes, "rm")["inputs"]["backbone"], "data": "parts.easy"}
    node(nodes, "gaps2")["inputs"] = {"reward_models": ["rm2"], "data": "rows"}
    nodes.insert(4, {"name": "rm2", "kind": "reward_model", "inputs": reads})
    node(nodes, "gaps")["on_weak"] = "warn"
    job_id = create(client, nodes)
    work()
    assert read(client, job_id)["pause"]["stage"] == "gaps2"
    if accepted_before:
        client.post(f"/v1/jobs/{job_id}/resume")
        client.post(f"/v1/jobs/{job_id}/pause")
    resumed = client.post(f"/v1/jobs/{job_id}/resume", json={"parts": {"threshold": 2.0}})
    assert resumed.status_code == 200, resumed.text
    work()
    paused = read(client, job_id)
    assert (paused["status"], (paused["pause"] or {}).get("stage")) == ("paused", "gaps2")


@pytest.mark.parametrize(("on_weak", "status"), [("fail", "failed"), ("pause", "paused")])
def test_a_weak_score_that_is_cached_fails_or_pauses_a_job_in_which_nothing_else_happens(
    client: TestClient, nodes: Nodes, on_weak: str, status: str
) -> None:
    node(nodes, "gaps")["on_weak"] = node(nodes, "gaps2")["on_weak"] = "warn"
    create(client, nodes)
    work()
    node(nodes, "gaps2")["on_weak"] = on_weak
    assert read(client, create(client, nodes))["status"] == status
