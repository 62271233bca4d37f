"""A spec becomes a job, or is refused with the name of the field that is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.jobs import room
from mpo.records import PreferencePair
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import make_dataset, make_model, pairs, publish, work_until

STAGES = [
    "hold_out",
    "sft",
    "reward_model_fold_1",
    "reward_model_fold_2",
    "reward_model_fold_3",
    "reward_model",
    "score",
    "split",
    "dpo",
    "ppo",
    "judge",
    "evaluate",
]
Change = Callable[[dict[str, Any]], dict[str, Any]]


def with_method(**stages: Any) -> Change:
    return lambda spec: spec | {"method": {"type": "mpo"} | stages}


WRONG: dict[str, tuple[Change, list[str | int]]] = {
    "no model": (lambda s: {k: v for k, v in s.items() if k != "model"}, ["body", "model"]),
    "unknown model": (lambda s: s | {"model": "nobody"}, ["body", "model"]),
    "no such trained model": (lambda s: s | {"model": "job_x:dpo"}, ["body", "model"]),
    "unknown dataset": (lambda s: s | {"dataset": "ds_x"}, ["body", "dataset"]),
    "unknown eval_dataset": (lambda s: s | {"eval_dataset": "ds_x"}, ["body", "eval_dataset"]),
    "unknown field": (lambda s: s | {"modle": "tiny"}, ["body", "modle"]),
    "negative beta": (with_method(dpo={"beta": -1}), ["body", "method", "dpo", "beta"]),
    "two thresholds": (with_method(split={"threshold": 1, "quantile": 0.5}), ["body", "method", "split"]),
    "unknown stage option": (with_method(ppo={"klo": 1}), ["body", "method", "ppo", "klo"]),
    "unknown method": (lambda s: s | {"method": {"type": "magic"}}, ["body", "method", "type"]),
    "unknown pause": (lambda s: s | {"pause_after": ["split", "spilt"]}, ["body", "pause_after", 1]),
    "too long": (
        with_method(dpo={"max_prompt_tokens": 4096}),
        ["body", "method", "dpo", "max_prompt_tokens"],
    ),
    "priority too high": (lambda s: s | {"priority": 1000}, ["body", "priority"]),
    "a number for a name": (lambda s: s | {"name": 7}, ["body", "name"]),
    "NUL in a label": (lambda s: s | {"labels": {"a": "b\0"}}, ["body", "labels", "a"]),
}


def test_a_job_is_created_with_its_whole_plan_and_starts(client: TestClient, spec: dict[str, Any]) -> None:
    response = client.post("/v1/jobs", json=spec)
    job = response.json()
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert [stage["name"] for stage in job["stages"]] == STAGES
    assert [stage["status"] for stage in job["stages"]] == ["queued", *["waiting"] * 11]
    assert (job["status"], job["queue_position"], job["models"]) == ("queued", 1, {})
    assert job["progress"] == {"fraction": 0.0, "eta_seconds": None}
    assert job["method"]["dpo"]["max_prompt_tokens"] == 128
    assert job["method"]["split"]["easy_fraction"] == 0.5
    assert client.get(response.headers["Location"]).json() == job


def test_the_resolved_method_can_be_sent_again(create_job: CreateJob) -> None:
    first = create_job()
    assert create_job(method=first["method"])["method"] == first["method"]


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_names_the_field(client: TestClient, spec: dict[str, Any], case: str) -> None:
    change, loc = WRONG[case]
    response = client.post("/v1/jobs", json=change(spec))
    problem = response.json()
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    locs = [error["loc"] for error in problem["errors"]]
    assert any(found[: len(loc)] == loc for found in locs) or loc[:-1] in locs, problem
    assert all(error["message"] for error in problem["errors"])


def test_a_reward_model_cannot_be_trained_further(client: TestClient, spec: dict[str, Any]) -> None:
    make_model("scorer", kind="reward_model")
    problem = client.post("/v1/jobs", json=spec | {"model": "scorer"}).json()
    assert problem["errors"][0]["loc"] == ["body", "model"]
    assert "reward model" in problem["detail"]


@pytest.mark.parametrize("changes", [{"owner": "bob"}, {"kind": "text"}])
def test_a_dataset_of_another_owner_or_kind_is_refused(
    client: TestClient, spec: dict[str, Any], tmp_path: Path, changes: dict[str, str]
) -> None:
    other = make_dataset(tmp_path, **changes)
    response = client.post("/v1/jobs", json=spec | {"dataset": other})
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["body", "dataset"]


def test_a_dataset_that_awaits_its_content_is_a_conflict(
    client: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    empty = make_dataset(tmp_path, status="awaiting_content", sha256=None)
    response = client.post("/v1/jobs", json=spec | {"dataset": empty})
    assert (response.status_code, response.json()["code"]) == (409, "dataset_has_no_content")


def test_a_dataset_that_validates_is_waited_for(create_job: CreateJob, tmp_path: Path) -> None:
    job = create_job(dataset=make_dataset(tmp_path, status="validating"))
    assert {stage["status"] for stage in job["stages"]} == {"waiting"}


def test_an_invalid_dataset_fails_the_job(create_job: CreateJob, tmp_path: Path) -> None:
    job = create_job(dataset=make_dataset(tmp_path, status="invalid"))
    assert (job["status"], job["error"]["code"]) == ("failed", "dataset_invalid")


def test_messages_need_a_chat_template(client: TestClient, spec: dict[str, Any], tmp_path: Path) -> None:
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    talks = make_dataset(
        tmp_path,
        [PreferencePair(str(i), [{"role": "user", "content": f"hello {i}"}], *answers) for i in range(8)],  # type: ignore[arg-type]
    )
    response = client.post("/v1/jobs", json=spec | {"dataset": talks})
    assert (response.status_code, response.json()["code"]) == (422, "no_chat_template")
    make_model("chatty", has_chat_template=True)
    response = client.post("/v1/jobs", json=spec | {"dataset": talks, "model": "chatty"})
    assert response.status_code == 202


def test_a_model_that_no_reward_model_can_be_made_of_is_told_at_submit(
    client: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    make_model("mamba", path=str(tmp_path))
    refused = client.post("/v1/jobs", json=spec | {"model": "mamba"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unusable_model")
    assert refused.json()["errors"][0]["loc"] == ["body", "model"]
    assert "no class with a scalar head for the architecture 'mamba'" in refused.json()["detail"]
    inputs = {"backbone": "mamba", "data": spec["dataset"]}
    stages = [{"name": "rm", "kind": "reward_model", "inputs": inputs}]
    refused = client.post("/v1/jobs", json={"stages": stages})
    assert refused.json()["errors"][0]["loc"] == ["body", "stages", 0, "inputs"]
    method = {"type": "dpo", "evaluate": None}
    assert client.post("/v1/jobs", json=spec | {"model": "mamba", "method": method}).status_code == 202


def test_too_many_open_jobs_are_told_when_to_come_back(
    client: TestClient, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = room.settings().model_copy(update={"max_open_jobs": 1})
    monkeypatch.setattr(room, "settings", lambda: limited)
    assert client.post("/v1/jobs", json=spec).status_code == 202
    response = client.post("/v1/jobs", json=spec)
    assert (response.status_code, response.json()["code"]) == (429, "too_many_open_jobs")
    assert 0 < int(response.headers["Retry-After"]) <= 120


def test_a_dry_run_tells_what_is_cached_and_makes_nothing(
    client: TestClient, spec: dict[str, Any], create_job: CreateJob
) -> None:
    before = client.post("/v1/jobs?dry_run=true", json=spec)
    assert before.status_code == 200
    assert "id" not in before.json()
    assert not any(stage["cached"] for stage in before.json()["stages"])
    assert client.get("/v1/jobs").json()["data"] == []
    create_job()
    assert work_until("split") is not None
    after = client.post("/v1/jobs?dry_run=true", json=spec).json()["stages"]
    assert set(after[0]) >= {"key", "cached", "tokens", "memory_bytes", "seconds", "problems"}
    cached = {stage["name"] for stage in after if stage["cached"]}
    assert {"hold_out", "score"} <= cached
    assert "split" not in cached


def test_a_second_job_takes_what_the_first_has_made(client: TestClient, create_job: CreateJob) -> None:
    first = create_job()
    work_until()
    second = create_job(name="second")
    assert client.get(f"/v1/jobs/{first['id']}").json()["status"] == "succeeded"
    assert second["status"] == "succeeded"
    assert all(stage["cached"] for stage in second["stages"])
    assert second["models"]["ppo"] == f"{second['id']}:ppo"
    assert set(second["models"]) == set(STAGES) - {"hold_out", "score", "split", "evaluate"}


def test_a_trained_policy_is_the_next_job_s_model(client: TestClient, create_job: CreateJob) -> None:
    first = create_job()
    claimed = work_until("ppo")
    assert claimed is not None
    refused = client.post("/v1/jobs?dry_run=true", json={**_spec(first), "model": f"{first['id']}:ppo"})
    assert "not trained yet" in refused.json()["detail"]
    publish(claimed, {})
    second = create_job(model=f"{first['id']}:ppo")
    # Its context is that of the base model that it descends from.
    assert second["method"]["dpo"]["max_prompt_tokens"] == 128
    problem = client.post("/v1/jobs", json={**_spec(first), "model": f"{first['id']}:reward_model"}).json()
    assert problem["errors"][0]["loc"] == ["body", "model"]
    work_until()
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 200


def _spec(job: dict[str, Any]) -> dict[str, Any]:
    return {"model": job["model"], "dataset": job["dataset"], "method": {"type": "mpo"}}


def test_a_single_row_to_train_on_is_told_at_submit(
    client: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    one, two = (make_dataset(tmp_path, pairs(n)) for n in (1, 2))
    method = {"type": "dpo", "sft": None, "hold_out": {"fraction": 0}, "evaluate": None}
    refused = client.post("/v1/jobs", json=spec | {"dataset": one, "method": method})
    assert (refused.status_code, refused.json()["code"]) == (422, "too_few_rows")
    assert refused.json()["errors"][0]["loc"] == ["body", "dataset"]
    sft = {"name": "sft", "kind": "sft", "inputs": {"policy": spec["model"], "data": one}}
    refused = client.post("/v1/jobs", json={"stages": [sft]})
    assert refused.json()["errors"] == [
        {
            "loc": ["body", "stages", 0, "inputs", "data"],
            "message": f"{one} holds a single row, and sft cannot train on one: give it two or more",
        }
    ]
    accepted = client.post("/v1/jobs?dry_run=true", json=spec | {"dataset": two, "method": method})
    assert accepted.status_code == 200, accepted.text


@pytest.mark.parametrize("kind", ["sft", "reward_model", "dpo"])
@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_single_row_is_found_behind_what_holds_nothing_out(
    client: TestClient, spec: dict[str, Any], tmp_path: Path, kind: str, part: str
) -> None:
    one, two = (make_dataset(tmp_path, pairs(n)) for n in (1, 2))
    model, data = {"reward_model": "backbone"}.get(kind, "policy"), {"train": "data", "eval": "eval"}[part]
    inputs = {"data": two, "eval": two, data: one}
    networks = {model: spec["model"]} | ({"reference": spec["model"]} if kind == "dpo" else {})

    def nodes(held: dict[str, str]) -> list[dict[str, Any]]:
        trained = {"name": "trained", "kind": kind, "inputs": {**networks, "data": f"held.{part}"}}
        return [{"name": "held", "kind": "hold_out", "inputs": held}, trained]

    refused = client.post("/v1/jobs", json={"stages": nodes(inputs)})
    assert (refused.status_code, refused.json()["code"]) == (422, "too_few_rows"), refused.text
    assert refused.json()["errors"][0]["loc"] == ["body", "stages", 0, "inputs", data]
    accepted = client.post("/v1/jobs?dry_run=true", json={"stages": nodes({"data": two, "eval": two})})
    assert accepted.status_code == 200, accepted.text


def test_too_few_prompts_are_told_at_submit(client: TestClient, spec: dict[str, Any], tmp_path: Path) -> None:
    one_prompt = [PreferencePair(str(i), "same", f"a {i}", f"b {i}") for i in range(8)]
    alone = make_dataset(tmp_path, one_prompt)
    refused = client.post("/v1/jobs", json=spec | {"dataset": alone})
    assert (refused.status_code, refused.json()["code"]) == (422, "too_few_prompts")
    assert refused.json()["errors"][0]["loc"] == ["body", "method", "hold_out", "fraction"]
    few = make_dataset(tmp_path, pairs(4))  # one is held out, three are left
    method = {"type": "mpo", "score": {"folds": 4}}
    refused = client.post("/v1/jobs", json=spec | {"dataset": few, "method": method})
    assert refused.json()["errors"] == [
        {
            "loc": ["body", "method", "score", "folds"],
            "message": "4 folds need at least as many prompt groups; 3 are left for training",
        }
    ]
    method = {"type": "mpo", "score": {"folds": 3}}
    accepted = client.post("/v1/jobs?dry_run=true", json=spec | {"dataset": few, "method": method})
    assert accepted.status_code == 200, accepted.text
    two = make_dataset(tmp_path, pairs(2))  # one is held out, one is left
    method = {"type": "mpo", "score": {"scheme": "held_out"}}
    refused = client.post("/v1/jobs", json=spec | {"dataset": two, "method": method})
    assert refused.json()["errors"] == [
        {
            "loc": ["body", "method", "score", "scheme"],
            "message": "held_out needs at least 2 prompt groups; 1 are left for training",
        }
    ]
    stages = [{"name": "h", "kind": "hold_out", "inputs": {"data": alone}}]
    explicit = client.post("/v1/jobs", json={"stages": stages})
    assert explicit.json()["errors"][0]["loc"] == ["body", "stages", 0, "fraction"]


@pytest.mark.parametrize("field", ["model", "dataset", "eval_dataset"])
def test_what_cannot_be_stored_is_refused_by_its_field(
    client: TestClient, spec: dict[str, Any], field: str
) -> None:
    refused = client.post("/v1/jobs", json=spec | {field: "a\0b"})
    assert refused.status_code == 422
    assert [error["loc"] for error in refused.json()["errors"]] == [["body", field]]


def test_a_dataset_that_two_fields_name_is_refused_by_the_first(
    client: TestClient, spec: dict[str, Any]
) -> None:
    refused = client.post("/v1/jobs", json=spec | {"dataset": "ds_x", "eval_dataset": "ds_x"})
    assert [error["loc"] for error in refused.json()["errors"]] == [["body", "dataset"]]
