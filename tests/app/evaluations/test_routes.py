"""Evaluations over HTTP: from the request to report and samples, by the stage's own function."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import IntegrityError

from core import queue
from core.aftermath import apply_run, report_progress
from core.database import open_session, open_transaction
from core.errors import FenceOver
from core.tables import Evaluation, Run
from mpo.config import EvaluateStage
from mpo.plan import RANK
from mpo.records import PreferencePair
from tests.app.evaluations.performing import (
    LENGTHS,
    asked,
    claim_gpu,
    held_out,
    perform,
    register_models,
    write_models,
)
from tests.app.jobs.factories import make_dataset, make_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def registered(client: TestClient, folders: Path) -> TestClient:
    register_models(folders)
    return client


@pytest.fixture
def dataset(registered: TestClient, tmp_path: Path) -> str:
    return held_out(tmp_path)


def create(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/evaluations", json=body)
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/v1/evaluations/{made['id']}"
    return made


def test_an_evaluation_ends_with_the_report_of_its_stage(
    registered: TestClient, dataset: str, tmp_path: Path
) -> None:
    roles = {"reward_model": "scorer", "sft": "first", "dpo": "second"}
    body = asked(dataset, models=["third", "first", "second"], samples=2, seed=5, **roles)
    made = create(registered, body)
    assert (made["object"], made["status"], made["report"]) == ("evaluation", "queued", None)
    assert made["id"].startswith("eval_")
    assert made["progress"] == {"step": 0, "total_steps": 0, "fraction": 0.0, "eta_seconds": None}
    perform(made["run_id"], tmp_path)
    found = registered.get(f"/v1/evaluations/{made['id']}").json()
    assert (found["status"], found["error"], found["warnings"]) == ("succeeded", None, [])
    assert body.items() <= found.items()
    assert found["progress"]["fraction"] == 1.0
    assert found["finished_at"] >= found["started_at"] >= found["created_at"]
    report = found["report"]
    with open_session() as session:
        run = session.get_one(Run, made["run_id"])
    # Nothing of the stage's report is lost on the way, nothing added.
    assert report == run.summary
    assert [model["model"] for model in report["models"]] == ["third", "first", "second"]
    assert [set(model["kl"]) for model in report["models"]] == [{"first", "second"}, {"second"}, {"first"}]
    assert {(rate["model_a"], rate["model_b"]) for rate in report["win_rates"]} == {
        ("first", "third"),
        ("second", "third"),
        ("second", "first"),
    }
    assert sum(group["n"] for group in report["by_gap"]) == report["prompts"] == 8
    assert report["judge"]["pairs"] == 12
    assert 0 <= report["judge"]["calibration"]["ece"] <= 1
    assert all(0 < model["diversity"]["distinct_1"] <= 1 for model in report["models"])
    assert all(0 < model["diversity"]["self_bleu"] < 1 for model in report["models"])
    assert report["contamination"] is None  # base models: nobody here has trained them


def test_a_report_of_before_self_bleu_was_told_is_still_read(
    registered: TestClient, dataset: str, tmp_path: Path
) -> None:
    made = create(registered, asked(dataset, models=["first"], prompts=2))
    perform(made["run_id"], tmp_path)
    with open_transaction() as tx:
        evaluation = tx.session.get_one(Evaluation, made["id"])
        assert evaluation.report is not None
        report = json.loads(json.dumps(evaluation.report))
        told = report["models"][0]["diversity"]
        del told["self_bleu"]
        evaluation.report = report
    found = registered.get(f"/v1/evaluations/{made['id']}").json()["report"]
    assert found["models"][0]["diversity"] == {**told, "self_bleu": None}


def test_the_samples_are_what_was_scored(registered: TestClient, dataset: str, tmp_path: Path) -> None:
    made = create(registered, asked(dataset, prompts=5, samples=2))
    path = f"/v1/evaluations/{made['id']}/samples"
    early = registered.get(path)
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    perform(made["run_id"], tmp_path)
    first = registered.get(f"{path}?limit=3").json()
    rest = registered.get(f"{path}?limit=3&after={first['last_id']}").json()
    rows = first["data"] + rest["data"]
    assert ([row["index"] for row in rows], first["has_more"], rest["has_more"]) == (
        [0, 1, 2, 3, 4],
        True,
        False,
    )
    backwards = registered.get(f"{path}?order=desc&limit=2&after=4").json()
    assert ([row["index"] for row in backwards["data"]], backwards["has_more"]) == ([3, 2], True)
    last = registered.get(f"{path}?order=desc&limit=2").json()
    assert last["data"] == [rows[4], rows[3]]
    assert [(r["model"], r["sample"]) for r in rows[0]["responses"]] == [
        ("first", 0), ("first", 1), ("second", 0), ("second", 1)
    ]  # fmt: skip
    report = registered.get(f"/v1/evaluations/{made['id']}").json()["report"]
    for model in report["models"]:
        scores = [r["score"] for row in rows for r in row["responses"] if r["model"] == model["model"]]
        assert model["reward"]["mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-9)
    whole = registered.get(path, headers={"Accept": "application/x-ndjson"})
    assert whole.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in whole.text.splitlines()] == rows
    for wrong in ("x", "-1", "9" * 12):
        assert registered.get(f"{path}?after={wrong}").status_code == 422


def test_the_run_is_the_stage_s_with_what_the_request_says(registered: TestClient, dataset: str) -> None:
    body = asked(dataset, seed=7, samples=3, temperature=0.5, reward_model="scorer")
    made = create(registered, {name: value for name, value in body.items() if name != "max_new_tokens"})
    # A quarter of the models' context.
    assert made["max_new_tokens"] == 16
    with open_session() as session:
        run = session.get_one(Run, made["run_id"])
    config = EvaluateStage.model_validate(run.config)
    assert (run.kind, run.slot, run.seed, run.job_id, run.key) == ("evaluate", "gpu", 7, None, None)
    assert run.rank == RANK.index("evaluate")
    assert (config.samples, config.temperature, config.max_new_tokens, config.prompts) == (3, 0.5, 16, 8)
    assert {role: [source["name"] for source in sources] for role, sources in run.inputs.items()} == {
        "models": ["first", "second"],
        "judge": ["judge"],
        "reward_model": ["scorer"],
        "data": [dataset],
    }


def test_progress_with_its_eta_and_warnings_are_shown_once(registered: TestClient, dataset: str) -> None:
    made = create(registered, asked(dataset))
    claimed = claim_gpu()
    path = f"/v1/evaluations/{made['id']}"
    assert registered.get(path).json()["status"] == "running"
    progress = {"step": 2, "total_steps": 5, "fraction": 0.4, "eta_seconds": 12.5}
    with open_transaction() as tx:
        queue.record_progress(tx, claimed, progress, {}, "")
    for _ in range(2):
        report_progress(claimed.id, ["The judge is odd.", "The judge is odd."])
    found = registered.get(path)
    assert (found.json()["progress"], found.json()["warnings"]) == (progress, ["The judge is odd."])
    again = registered.get(path, headers={"If-None-Match": found.headers["ETag"]})
    assert again.status_code == 304


def test_a_failure_is_told(registered: TestClient, dataset: str) -> None:
    made = create(registered, asked(dataset))
    claimed = claim_gpu()
    with open_transaction() as tx:
        queue.fail(tx, claimed, {"code": "unusable_model", "message": "It is broken.", "output": "secret"})
    apply_run(claimed.id)
    found = registered.get(f"/v1/evaluations/{made['id']}").json()
    assert (found["status"], found["report"]) == ("failed", None)
    assert found["error"] == {"code": "unusable_model", "message": "It is broken."}
    assert registered.get(f"/v1/evaluations/{made['id']}/samples").status_code == 409
    refused = registered.post(f"/v1/evaluations/{made['id']}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "evaluation_finished")


def test_a_cancelled_evaluation_stays_cancelled(registered: TestClient, dataset: str) -> None:
    made = create(registered, asked(dataset))
    for _ in range(2):
        cancelled = registered.post(f"/v1/evaluations/{made['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    apply_run(made["run_id"])
    assert registered.get(f"/v1/evaluations/{made['id']}").json()["status"] == "cancelled"
    with open_transaction() as tx:
        assert queue.claim(tx, "gpu", "wrk_test") is None


def test_who_is_cancelled_while_it_runs_publishes_nothing(registered: TestClient, dataset: str) -> None:
    made = create(registered, asked(dataset))
    claimed = claim_gpu()
    assert registered.post(f"/v1/evaluations/{made['id']}/cancel").json()["status"] == "cancelled"
    with pytest.raises(FenceOver), open_transaction() as tx:
        queue.publish(tx, claimed, [], {"prompts": 1})
    report_progress(claimed.id, ["too late"])
    apply_run(claimed.id)
    found = registered.get(f"/v1/evaluations/{made['id']}").json()
    assert (found["status"], found["report"], found["warnings"]) == ("cancelled", None, [])


def test_a_wait_ends_with_the_evaluation(registered: TestClient, dataset: str) -> None:
    waited = registered.post("/v1/evaluations?wait=0.1", json=asked(dataset))
    assert (waited.status_code, waited.json()["status"]) == (202, "queued")
    path = f"/v1/evaluations/{waited.json()['id']}"
    assert registered.post(f"{path}/cancel").status_code == 200
    assert registered.get(f"{path}?wait=60").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"models": []}, ["body", "models"]),
        ({"models": [f"m{n}" for n in range(9)]}, ["body", "models"]),
        ({"models": ["first", "first"]}, ["body", "models"]),
        ({"models": ["first", "none"]}, ["body", "models", 1]),
        ({"models": ["first", "job_none:sft"]}, ["body", "models", 1]),
        ({"models": ["first", "scorer"]}, ["body", "models", 1]),
        ({"models": ["a\0b"]}, ["body", "models", 0]),
        ({"judge": None}, ["body", "judge"]),
        ({"judge": "none"}, ["body", "judge"]),
        ({"judge": "first"}, ["body", "judge"]),
        ({"reward_model": "second"}, ["body", "reward_model"]),
        ({"sft": "scorer"}, ["body", "sft"]),
        ({"dpo": "none"}, ["body", "dpo"]),
        ({"dataset": "ds_none"}, ["body", "dataset"]),
        ({"prompts": 0}, ["body", "prompts"]),
        ({"samples": 65}, ["body", "samples"]),
        ({"temperature": 0}, ["body", "temperature"]),
        ({"max_prompt_tokens": 60}, ["body", "max_prompt_tokens"]),
        ({"judge_independence": "psychic"}, ["body", "judge_independence"]),
        ({"judge_independence": "gold"}, ["body", "judge_independence"]),
        ({"seed": -1}, ["body", "seed"]),
        ({"learning_rate": 1e-4}, ["body", "learning_rate"]),
    ],
)
def test_a_wrong_request_names_its_field(
    registered: TestClient, dataset: str, changes: dict[str, Any], loc: list[str | int]
) -> None:
    response = registered.post("/v1/evaluations", json=asked(dataset) | changes)
    assert response.status_code == 422, response.text
    assert any(error["loc"][: len(loc)] == loc for error in response.json()["errors"]), response.text


@pytest.mark.parametrize(
    "changes",
    [
        {"models": ["first", "SECRET"]},
        {"models": ["job_SECRET:dpo"]},
        {"judge": "SECRET"},
        {"dataset": "ds_SECRET"},
    ],
)
def test_a_refusal_does_not_repeat_what_was_sent(
    registered: TestClient, dataset: str, changes: dict[str, Any]
) -> None:
    response = registered.post("/v1/evaluations", json=asked(dataset) | changes)
    assert response.status_code == 422
    assert "SECRET" not in response.text


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        ("awaiting_content", "preference", (409, "dataset_has_no_content")),
        ("validating", "preference", (409, "dataset_not_ready")),
        ("invalid", "preference", (422, "invalid_request")),
        ("ready", "text", (422, "invalid_request")),
        ("ready", "prompts", (422, "invalid_request")),
    ],
)
def test_a_dataset_without_usable_pairs_is_refused(
    registered: TestClient, tmp_path: Path, status: str, kind: str, expected: tuple[int, str]
) -> None:
    changes: dict[str, Any] = {"status": status, "kind": kind}
    if status != "ready":
        changes |= {"rows_location": None, "rows_sha256": None}
    response = registered.post("/v1/evaluations", json=asked(make_dataset(tmp_path, **changes)))
    assert (response.status_code, response.json()["code"]) == expected, response.text
    assert len(registered.get("/v1/evaluations").json()["data"]) == 0


def test_messages_need_models_with_a_template(registered: TestClient, tmp_path: Path) -> None:
    turns: Any = [{"role": "user", "content": "red"}]
    said: Any = [[{"role": "assistant", "content": word}] for word in ("cat", "dog")]
    dataset = make_dataset(tmp_path, [PreferencePair("0", turns, *said)])
    response = registered.post("/v1/evaluations", json=asked(dataset))
    assert (response.status_code, response.json()["code"]) == (422, "no_chat_template")
    assert response.json()["errors"][0]["loc"] == ["body", "dataset"]


def test_lengths_fit_the_smallest_context_of_all_models(registered: TestClient, dataset: str) -> None:
    make_model("short", context_tokens=24)
    lengths = dict.fromkeys(LENGTHS)
    made = create(registered, asked(dataset, models=["first", "short"], **lengths))
    assert (made["max_prompt_tokens"], made["max_response_tokens"], made["max_new_tokens"]) == (12, 6, 6)


def test_no_evaluation_of_that_id_is_404(registered: TestClient) -> None:
    for path in ("eval_none", "eval_none/samples"):
        assert registered.get(f"/v1/evaluations/{path}").status_code == 404
    assert registered.post("/v1/evaluations/eval_none/cancel").status_code == 404


def test_the_database_keeps_no_success_without_a_report(registered: TestClient, dataset: str) -> None:
    made = create(registered, asked(dataset))
    with pytest.raises(IntegrityError, match="ck_evaluations_succeeded_has_report"), open_transaction() as tx:
        tx.session.get_one(Evaluation, made["id"]).status = "succeeded"
