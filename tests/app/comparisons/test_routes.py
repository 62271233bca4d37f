"""Comparisons over HTTP: from the request to rows and win rates, with the real sampler's loop."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core import queue
from core.aftermath import apply_run
from core.bootstrap import register_model
from core.comparing import ComparisonRequest, record_rows
from core.database import open_transaction
from tests.sampler import running_sampler, write_models
from workers.comparison import compare

PROMPTS = ["red ", "blue cat ", "green bird "]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def registered(client: TestClient, folders: Any) -> Iterator[TestClient]:
    with open_transaction() as tx:
        for name in ("plain", "chatty", "scorer"):
            register_model(tx, getattr(folders, name), name=name)
    return client


def asked(**changes: Any) -> dict[str, Any]:
    sampling = {"max_tokens": 6, "seed": 4, "n": 2}
    body = {"models": ["plain", "chatty"], "prompts": PROMPTS, "sampling": sampling}
    return body | {"scorer": {"reward_model": "scorer"}} | changes


def perform(run_id: str) -> None:
    """What the executor does, without its child: claim, compare, record, publish, carry over."""
    with open_transaction() as tx:
        claimed = queue.claim(tx, "cpu", "wrk_test")
    assert claimed is not None
    assert claimed.id == run_id

    def report(rows: list[dict[str, Any]]) -> None:
        with open_transaction() as tx:
            record_rows(tx, claimed.subject_id, rows)

    config = ComparisonRequest.model_validate(claimed.config)
    summary = compare(config, claimed.inputs, report, lambda *_: None, lambda: False)
    with open_transaction() as tx:
        queue.publish(tx, claimed, [], summary)
    apply_run(claimed.id)


def test_a_comparison_ends_with_rows_and_win_rates(registered: TestClient) -> None:
    response = registered.post("/v1/comparisons", json=asked())
    made = response.json()
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/v1/comparisons/{made['id']}"
    assert (made["object"], made["status"], made["row_count"]) == ("comparison", "queued", 0)
    with running_sampler():
        perform(made["run_id"])
    found = registered.get(f"/v1/comparisons/{made['id']}").json()
    assert (found["status"], found["row_count"], found["error"]) == ("succeeded", 3, None)
    assert found["progress"]["fraction"] == 1.0
    row = found["rows"][1]
    assert (row["index"], row["prompt"]) == (1, "blue cat ")
    assert [(r["model"], r["sample"]) for r in row["responses"]] == [
        ("plain", 0), ("plain", 1), ("chatty", 0), ("chatty", 1)
    ]  # fmt: skip
    assert all(isinstance(r["score"], float) and r["tokens"] <= 6 for r in row["responses"])

    rate = found["win_rates"][0]
    means = [
        [sum(r["score"] for r in row["responses"] if r["model"] == m) / 2 for m in ("plain", "chatty")]
        for row in found["rows"]
    ]
    wins = sum(a > b for a, b in means)
    assert (rate["model_a"], rate["model_b"], rate["n"]) == ("plain", "chatty", 3)
    assert (rate["wins"], rate["losses"], rate["ties"]) == (wins, 3 - wins, 0)
    assert rate["win_rate"] == pytest.approx(wins / 3)
    assert rate["ci95"][0] <= rate["win_rate"] <= rate["ci95"][1]
    assert rate["in_training"] is False

    first = registered.get(f"/v1/comparisons/{made['id']}/rows?limit=2").json()
    rest = registered.get(f"/v1/comparisons/{made['id']}/rows?limit=2&after={first['last_id']}").json()
    assert [row["index"] for row in first["data"] + rest["data"]] == [0, 1, 2]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    table = registered.get(f"/v1/comparisons/{made['id']}/rows", headers={"Accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert len(lines) == 12
    assert [line["text"] for line in lines[:4]] == [r["text"] for r in found["rows"][0]["responses"]]


def test_lists_are_newest_first(registered: TestClient) -> None:
    ids = [registered.post("/v1/comparisons", json=asked()).json()["id"] for _ in range(2)]
    listed = registered.get("/v1/comparisons").json()
    assert [comparison["id"] for comparison in listed["data"]] == ids[::-1]


def test_a_cancelled_comparison_stays_cancelled(registered: TestClient) -> None:
    made = registered.post("/v1/comparisons", json=asked(scorer=None)).json()
    for _ in range(2):
        cancelled = registered.post(f"/v1/comparisons/{made['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    apply_run(made["run_id"])
    assert registered.get(f"/v1/comparisons/{made['id']}").json()["status"] == "cancelled"
    with open_transaction() as tx:
        assert queue.claim(tx, "cpu", "wrk_test") is None


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"models": ["plain"]}, ["body", "models"]),
        ({"models": ["plain", "plain"]}, ["body", "models"]),
        ({"models": ["plain", "none"]}, ["body", "models", 1]),
        ({"models": ["plain", "scorer"]}, ["body", "models", 1]),
        ({"scorer": {"reward_model": "plain"}}, ["body", "scorer", "reward_model"]),
        ({"scorer": {"judge": {"url": "http://somewhere"}}}, ["body", "scorer", "judge"]),
        ({"blind": True}, ["body", "blind"]),
        ({"prompts": None}, ["body"]),
        ({"prompts": ["a\0b"]}, ["body", "prompts", 0]),
        ({"prompts": None, "dataset": "ds_none"}, ["body", "dataset"]),
        ({"sampling": {"temperature": 9}}, ["body", "sampling", "temperature"]),
        ({"unknown": 1}, ["body", "unknown"]),
    ],
)
def test_a_wrong_request_names_its_field(
    registered: TestClient, changes: dict[str, Any], loc: list[str | int]
) -> None:
    response = registered.post("/v1/comparisons", json=asked(**changes))
    assert response.status_code == 422, response.text
    assert any(error["loc"][: len(loc)] == loc for error in response.json()["errors"]), response.text


@pytest.mark.parametrize(
    "changes",
    [
        {"models": ["plain", "SECRET"]},
        {"models": ["plain", "job_SECRET:dpo"]},
        {"scorer": {"reward_model": "SECRET"}},
        {"prompts": None, "dataset": "ds_SECRET"},
    ],
)
def test_a_refusal_does_not_repeat_what_was_sent(registered: TestClient, changes: dict[str, Any]) -> None:
    response = registered.post("/v1/comparisons", json=asked(**changes))
    assert response.status_code == 422
    assert "SECRET" not in response.text


def test_what_a_model_writes_can_be_stored_whatever_it_is(registered: TestClient) -> None:
    made = registered.post("/v1/comparisons", json=asked(scorer=None)).json()
    response = {
        "model": "plain", "sample": 0, "text": "a\0b", "finish_reason": "stop", "tokens": 3, "score": None
    }  # fmt: skip
    for _ in range(2):
        with open_transaction() as tx:
            record_rows(tx, made["id"], [{"index": 1, "prompt": "p", "responses": [response]}])
    found = registered.get(f"/v1/comparisons/{made['id']}").json()
    assert (found["row_count"], found["rows"][0]["responses"][0]["text"]) == (1, "a\ufffdb")


def test_no_comparison_of_that_id_is_404(registered: TestClient) -> None:
    for path in ("cmp_none", "cmp_none/rows"):
        assert registered.get(f"/v1/comparisons/{path}").status_code == 404
    assert registered.post("/v1/comparisons/cmp_none/cancel").status_code == 404
