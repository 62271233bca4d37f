"""Upload -> MPO job -> reward gaps -> side-by-side samples: over HTTP, on the stack that `mpo up` starts."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from embedded.processes import process_id
from tests.end_to_end.running_stack import QUICK_METHOD, RunningStack, example_rows, running_stack

TRAINED = {"sft", "dpo", "ppo", "reward_model", "judge", "reward_model_fold_1", "reward_model_fold_2"}
PNG = b"\x89PNG\r\n\x1a\n"


def spec(dataset: str, **changes: Any) -> dict[str, Any]:
    return {"name": "tiny", "model": "tiny", "dataset": dataset, "method": QUICK_METHOD, "seed": 1} | changes


@pytest.fixture(scope="module")
def dataset(stack: RunningStack) -> str:
    ready = stack.upload(example_rows(80))
    assert ready["status"] == "ready", ready
    return str(ready["id"])


@pytest.fixture(scope="module")
def job(stack: RunningStack, dataset: str) -> dict[str, Any]:
    finished = stack.wait_for(
        f"/v1/jobs/{stack.submit(spec(dataset))['id']}", {"succeeded", "failed", "cancelled"}
    )
    assert finished["status"] == "succeeded", finished["error"]
    return finished


def test_every_stage_of_the_plan_succeeds_and_names_its_models(job: dict[str, Any]) -> None:
    assert {stage["status"] for stage in job["stages"]} == {"succeeded"}
    assert set(job["models"]) == TRAINED
    assert job["progress"]["fraction"] == 1
    assert job["finished_at"] >= job["started_at"] >= job["created_at"]


def test_events_tell_the_job_s_story_in_order(stack: RunningStack, job: dict[str, Any]) -> None:
    events = stack.get(f"/v1/jobs/{job['id']}/events", limit=100)["data"]
    ids = [event["id"] for event in events]
    assert ids == sorted(set(ids))
    types = [event["type"] for event in events]
    assert types[0] == "job.created"
    assert "stage.started" in types


def test_the_histogram_adds_up_and_can_be_looked_at(stack: RunningStack, job: dict[str, Any]) -> None:
    path = f"/v1/jobs/{job['id']}/reward-gaps"
    gaps = stack.get(path, bins=10)
    assert sum(gaps["counts"]) + gaps["below"] + gaps["above"] == gaps["pairs"]
    assert gaps["easy"] + gaps["difficult"] + gaps["dropped"] == gaps["pairs"]
    assert gaps["scored_by"] == "cross_fit"
    picture = stack.client.get(path, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(PNG)
    preview = stack.get(f"{path}/preview", threshold=gaps["threshold"])
    assert preview["easy"]["pairs"] == gaps["easy"]
    pairs = stack.get(f"/v1/jobs/{job['id']}/pairs", part="easy", order="-gap", limit=5)["data"]
    assert [p["gap"] for p in pairs] == sorted((p["gap"] for p in pairs), reverse=True)
    assert all(p["gap"] == pytest.approx(p["reward_chosen"] - p["reward_rejected"], abs=1e-5) for p in pairs)


def test_three_models_answer_the_same_prompt_side_by_side(stack: RunningStack, job: dict[str, Any]) -> None:
    models = [job["models"][name] for name in ("sft", "dpo", "ppo")]
    prompts = ["\n\nHuman: My parcel has not arrived.\n\nAssistant:", "\n\nHuman: Hello?\n\nAssistant:"]
    answer = stack.client.post(
        "/v1/comparisons",
        json={
            "models": models,
            "prompts": prompts,
            "sampling": {"max_tokens": 12, "seed": 3},
            "scorer": {"reward_model": job["models"]["judge"]},
        },
    )
    assert answer.status_code == 202, answer.text
    done = stack.wait_for(answer.headers["Location"], {"succeeded", "failed", "cancelled"}, 120)
    assert done["status"] == "succeeded", done["error"]
    assert [[r["model"] for r in row["responses"]] for row in done["rows"]] == [models, models]
    assert all(isinstance(r["score"], float) for row in done["rows"] for r in row["responses"])
    assert len(done["win_rates"]) == 3
    for rate in done["win_rates"]:
        assert rate["wins"] + rate["losses"] + rate["ties"] == rate["n"] == 2
        assert rate["ci95"][0] <= rate["win_rate"] <= rate["ci95"][1]


def test_trained_models_are_evaluated_outside_of_their_job(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    models = [job["models"][name] for name in ("sft", "dpo", "ppo")]
    unseen = stack.upload(example_rows(100)[80:], "unseen")
    roles = {"judge": job["models"]["judge"], "reward_model": job["models"]["reward_model"], "sft": models[0]}
    found = {}
    for data in (dataset, str(unseen["id"])):
        body = {"models": models, **roles, "dataset": data, "prompts": 80, "max_new_tokens": 8}
        answer = stack.client.post("/v1/evaluations", json=body)
        assert answer.status_code == 202, answer.text
        done = stack.wait_for(answer.headers["Location"], {"succeeded", "failed", "cancelled"}, 240)
        assert done["status"] == "succeeded", done["error"]
        assert done["progress"]["fraction"] == 1
        report = done["report"]
        assert [model["model"] for model in report["models"]] == models
        assert [set(model["kl"]) for model in report["models"]] == [set(), {models[0]}, {models[0]}]
        assert sum(group["n"] for group in report["by_gap"]) == report["prompts"]
        found[data] = report["contamination"]
    for model in found[dataset]["models"]:
        assert model["data"] == [f"{job['id']}:hold_out.train"]
        # All but what the job itself held out.
        assert 0 < model["equal"]["prompts"] < found[dataset]["prompts"]
    assert stack.client.get(answer.headers["Location"] + "/samples").json()["data"][0]["index"] == 0


def test_a_seed_gives_the_same_completion_again(stack: RunningStack, job: dict[str, Any]) -> None:
    body = {
        "model": job["models"]["ppo"],
        "prompt": "\n\nHuman: Hi\n\nAssistant:",
        "max_tokens": 8,
        "seed": 5,
    }
    first, second = (stack.client.post("/v1/completions", json=body).json() for _ in range(2))
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert first["usage"]["completion_tokens"] <= 8


def test_a_trained_model_can_be_taken_home(stack: RunningStack, job: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = job["models"]["ppo"]
    for file in stack.get(f"/v1/models/{model}/files")["data"]:
        content = stack.client.get(f"/v1/models/{model}/files/{file['name']}").content
        assert len(content) == file["bytes"]
        (tmp_path / file["name"]).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() <= 1_000_000
    assert AutoTokenizer.from_pretrained(tmp_path)("hi")["input_ids"]


def test_another_threshold_reuses_reward_models_and_scores(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    method = {**QUICK_METHOD, "split": {"easy_fraction": 0.3}}
    submitted = stack.submit(spec(dataset, method=method))
    again = stack.wait_for(f"/v1/jobs/{submitted['id']}", {"succeeded", "failed", "cancelled"})
    assert again["status"] == "succeeded", again["error"]
    cached = {stage["name"] for stage in again["stages"] if stage["cached"]}
    assert cached == {
        "hold_out",
        "sft",
        "reward_model_fold_1",
        "reward_model_fold_2",
        "reward_model",
        "score",
        "judge",
    }


def test_a_job_waits_for_a_person_after_the_split_and_goes_on_with_their_threshold(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    submitted = stack.submit(spec(dataset, pause_after=["split"]))
    path = f"/v1/jobs/{submitted['id']}"
    paused = stack.wait_for(path, {"paused", "succeeded", "failed"})
    assert paused["status"] == "paused"
    assert paused["pause"]["reason"] == "pause_after"
    gaps = stack.get(f"{path}/reward-gaps")
    threshold = gaps["quantiles"]["0.25"]
    answer = stack.client.post(f"{path}/resume", json={"split": {"threshold": threshold}})
    assert answer.status_code in (200, 202), answer.text
    done = stack.wait_for(path, {"succeeded", "failed", "cancelled"})
    assert done["status"] == "succeeded", done["error"]
    assert stack.get(f"{path}/reward-gaps")["threshold"] == pytest.approx(threshold)


def in_dpo(stack: RunningStack, dataset: str, epochs: int) -> str:
    """The path of a job that has taken two steps of a long DPO; all before it is cached."""
    method = {**QUICK_METHOD, "dpo": {"epochs": epochs, "checkpoint_seconds": 0}}
    path = f"/v1/jobs/{stack.submit(spec(dataset, method=method))['id']}"
    deadline = time.monotonic() + 120
    found = stack.get(path)
    while (dpo := stage_of(found, "dpo"))["progress"]["step"] < 2:
        assert dpo["status"] != "succeeded", "DPO ended before it could be disturbed"
        assert time.monotonic() < deadline, dpo
        found = stack.client.get(path, params={"wait": 5}).json()
    return path


def stage_of(job: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in job["stages"] if stage["name"] == name)


def test_a_killed_gpu_worker_in_dpo_costs_no_job(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    path = in_dpo(stack, dataset, epochs=12)
    os.kill(stack.processes()["worker-gpu"], signal.SIGKILL)
    done = stack.wait_for(path, {"succeeded", "failed", "cancelled"})
    assert done["status"] == "succeeded", done["error"]
    assert stage_of(done, "dpo")["attempt"] == 2


def test_a_gpu_worker_that_is_asked_to_stop_in_dpo_costs_no_attempt(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    path = in_dpo(stack, dataset, epochs=13)
    worker = process_id(stack.processes()["worker-gpu"])
    assert worker is not None
    # Asked again and again: the stop that is under way goes on.
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        worker.send(number)
    assert worker.wait(30)
    said = lines_of(stack, "worker-gpu", run_id=stage_of(stack.get(path), "dpo")["run_id"])
    assert [line["message"] for line in said if line["message"].startswith("child ended")] == [
        "child ended: Stopped"
    ]
    done = stack.wait_for(path, {"succeeded", "failed", "cancelled"})
    assert done["status"] == "succeeded", done["error"]
    assert stage_of(done, "dpo")["attempt"] == 1


def lines_of(stack: RunningStack, *processes: str, **fields: object) -> list[dict[str, Any]]:
    """Log lines of these processes, a worker's children's too, that carry these fields."""
    texts = "".join((stack.state / "logs" / f"{name}.log").read_text() for name in processes)
    lines = [json.loads(line) for line in texts.splitlines() if line.startswith('{"ts"')]
    return [line for line in lines if fields.items() <= line.items()]


def test_one_request_s_id_leads_from_the_api_through_the_workers_to_their_children(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    (submission,) = lines_of(stack, "api", made=f"/v1/jobs/{job['id']}")
    assert (submission["route"], submission["status"]) == ("/v1/jobs", 202)
    found = lines_of(stack, "worker-cpu", "worker-gpu", request_id=submission["request_id"])
    assert {line["process"] for line in found} == {"worker-cpu", "worker-gpu", "child"}
    assert {line["job_id"] for line in found} == {job["id"]}
    for stage in job["stages"]:
        of_stage = [line for line in found if line["process"] == "child" and line["stage"] == stage["name"]]
        assert {(line["run_id"], line["fence"]) for line in of_stage} == {(stage["run_id"], 1)}
    (upload,) = lines_of(stack, "api", made=f"/v1/datasets/{dataset}")
    assert lines_of(stack, "worker-cpu", process="child", request_id=upload["request_id"])


def test_logs_hold_no_text_of_the_data_and_no_key(stack: RunningStack, job: dict[str, Any]) -> None:
    logged = "".join(log.read_text() for log in (stack.state / "logs").glob("*.log"))
    assert len(logged) > 1000
    for row in example_rows(80):
        for text in row.values():
            assert str(text)[:60] not in logged
    assert (stack.state / "api-key").read_text().strip() not in logged


def test_a_cancelled_job_ends_at_once_and_its_stage_with_it(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    method = {**QUICK_METHOD, "sft": {"epochs": 500, "max_steps": None}}
    submitted = stack.submit(spec(dataset, method=method))
    path = f"/v1/jobs/{submitted['id']}"
    stack.wait_for(path, {"running"})
    answer = stack.client.post(f"{path}/cancel")
    assert answer.status_code in (200, 202), answer.text
    assert stack.get(path)["status"] == "cancelled"
    # The slot is free again: other work goes through it.
    assert stack.upload(example_rows(10), "after the cancel")["status"] == "ready"


def test_a_second_stack_beside_the_first_does_its_own_job(stack: RunningStack, tmp_path: Path) -> None:
    with running_stack(tmp_path / "two") as other:
        assert other.url != stack.url
        ready = other.upload(example_rows(80))
        brief = {"type": "sft", "sft": QUICK_METHOD["sft"]}
        submitted = other.submit(spec(ready["id"], method=brief))
        done = other.wait_for(f"/v1/jobs/{submitted['id']}", {"succeeded", "failed", "cancelled"})
        assert done["status"] == "succeeded", done["error"]
        assert other.get("/v1/jobs")["data"][0]["id"] == done["id"]
        assert stack.client.get(f"/v1/jobs/{done['id']}").status_code == 401 or (
            stack.client.get(f"/v1/jobs/{done['id']}").status_code == 404
        )
