"""Upload -> MPO job -> reward gaps -> side-by-side samples: over HTTP, on the stack that `mpo up` starts."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

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


def test_a_killed_gpu_worker_in_dpo_costs_no_job(
    stack: RunningStack, dataset: str, job: dict[str, Any]
) -> None:
    method = {**QUICK_METHOD, "dpo": {"epochs": 12, "checkpoint_seconds": 0}}
    submitted = stack.submit(spec(dataset, method=method))
    path = f"/v1/jobs/{submitted['id']}"
    deadline = time.monotonic() + 120
    found = stack.get(path)
    while (dpo := next(s for s in found["stages"] if s["name"] == "dpo"))["progress"]["step"] < 2:
        assert dpo["status"] != "succeeded", "DPO ended before it could be disturbed"
        assert time.monotonic() < deadline, dpo
        found = stack.client.get(path, params={"wait": 5}).json()
    os.kill(stack.processes()["worker-gpu"], signal.SIGKILL)
    done = stack.wait_for(path, {"succeeded", "failed", "cancelled"})
    assert done["status"] == "succeeded", done["error"]
    assert next(s for s in done["stages"] if s["name"] == "dpo")["attempt"] == 2


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


def test_a_second_stack_beside_the_first_does_the_whole_job_too(stack: RunningStack, tmp_path: Path) -> None:
    with running_stack(tmp_path / "two") as other:
        assert other.url != stack.url
        ready = other.upload(example_rows(80))
        done = other.wait_for(
            f"/v1/jobs/{other.submit(spec(ready['id']))['id']}", {"succeeded", "failed", "cancelled"}
        )
        assert done["status"] == "succeeded", done["error"]
        assert other.get("/v1/jobs")["data"][0]["id"] == done["id"]
        assert stack.client.get(f"/v1/jobs/{done['id']}").status_code == 401 or (
            stack.client.get(f"/v1/jobs/{done['id']}").status_code == 404
        )
