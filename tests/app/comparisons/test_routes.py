"""Comparisons over HTTP: from the request to rows and win rates, with the real sampler's loop."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core import queue
from core.aftermath import apply_run
from core.bootstrap import register_model
from core.comparing import ComparisonRequest, record_rows
from core.database import open_session, open_transaction
from core.settings import settings
from core.storage import storage
from core.tables import Dataset
from tests.judges import judging, says
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


def test_the_rows_are_a_page_and_json_lines_too(registered: TestClient) -> None:
    made = registered.post(
        "/v1/comparisons", json=asked(prompts=["<script>alert(1)</script> & red ", "blue"])
    ).json()
    with running_sampler():
        perform(made["run_id"])
    path = f"/v1/comparisons/{made['id']}/rows"
    page = registered.get(path, headers={"Accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; red" in page.text
    assert "<script" not in page.text
    assert page.text.count("<section>") == 2
    rates = registered.get(f"/v1/comparisons/{made['id']}").json()["win_rates"]
    assert f"{rates[0]['win_rate']:.3f}" in page.text
    lines = registered.get(path, headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert [json.loads(line) for line in lines] == registered.get(path).json()["data"]


def test_a_judge_compares_in_both_orders_over_http(
    registered: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that always takes the first place: nobody wins. Its key goes to it, and nowhere else."""
    monkeypatch.setenv("MPO_JUDGE_HOSTS", '["127.0.0.1"]')
    monkeypatch.setenv("MPO_JUDGE_KEYS", '{"127.0.0.1": "sk-of-the-judge"}')
    settings.cache_clear()
    seen: list[dict[str, Any]] = []
    sampling = {"max_tokens": 6, "seed": 4}
    with judging(lambda question: says("A"), seen) as url, running_sampler():
        judge = {"base_url": url, "model": "wise", "rubric": "Which is shorter?"}
        made = registered.post(
            "/v1/comparisons", json=asked(scorer={"judge": judge}, sampling=sampling)
        ).json()
        perform(made["run_id"])
    settings.cache_clear()
    found = registered.get(f"/v1/comparisons/{made['id']}").json()
    (rate,) = found["win_rates"]
    assert (rate["n"], rate["ties"], rate["disagreed"], rate["win_rate"]) == (3, 3, 3, 0.5)
    assert (rate["unparsed"], rate["failed"], rate["in_training"]) == (0, 0, False)
    assert found["scorer"]["base_url"] == url
    assert len(seen) == 6
    assert {each["path"] for each in seen} == {"/v1/chat/completions"}
    assert {each["headers"]["Authorization"] for each in seen} == {"Bearer sk-of-the-judge"}
    assert all(each["body"]["messages"][0]["content"].startswith("Which is shorter?") for each in seen)
    assert "sk-of-the-judge" not in registered.get(f"/v1/comparisons/{made['id']}").text


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
        (
            {"scorer": {"judge": {"base_url": "http://10.0.0.1/v1", "model": "m"}}, "sampling": {"n": 1}},
            ["body", "scorer", "judge", "base_url"],
        ),
        ({"scorer": {"judge": {"base_url": "https://example.org/v1", "model": "m"}}}, ["body"]),
        ({"scorer": {}}, ["body", "scorer"]),
        ({"blind": True}, ["body"]),
        ({"blind": True, "models": ["plain", "chatty", "third"], "sampling": {}}, ["body"]),
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


def finished_blind(client: TestClient) -> dict[str, Any]:
    """A blind comparison of two models over four prompts."""
    body = asked(blind=True, sampling={"max_tokens": 6, "seed": 4}, prompts=[*PROMPTS, "red cat "])
    made: dict[str, Any] = client.post("/v1/comparisons", json=body).json()
    with running_sampler():
        perform(made["run_id"])
    return made


def test_a_blind_row_shows_its_models_once_it_is_voted_on(registered: TestClient) -> None:
    made = finished_blind(registered)
    path = f"/v1/comparisons/{made['id']}"
    before = registered.get(path).json()
    assert before["blind"] is True
    for row in before["rows"]:
        assert [r["side"] for r in row["responses"]] == ["A", "B"]
        assert [(r["model"], r["score"]) for r in row["responses"]] == [(None, None)] * 2
    for accept in ("text/csv", "text/html", "application/x-ndjson"):
        file = registered.get(f"{path}/rows", headers={"Accept": accept}).text
        assert "chatty" not in file.partition("Side by side")[2 if accept == "text/html" else 0]

    voted = registered.post(f"{path}/votes", json={"row": 1, "preferred": "A", "annotator": "ann"})
    assert voted.status_code == 200, voted.text
    assert {r["model"] for r in voted.json()["responses"]} == {"plain", "chatty"}
    assert [r["text"] for r in voted.json()["responses"]] == [
        r["text"] for r in before["rows"][1]["responses"]
    ]
    after = registered.get(path).json()
    assert after["rows"][1]["votes"] == [{"annotator": "ann", "preferred": "A"}]
    assert after["rows"][0]["responses"][0]["model"] is None
    assert (
        registered.get(path, headers={"If-None-Match": registered.get(path).headers["ETag"]}).status_code
        == 304
    )


def test_sides_are_shuffled_by_row_and_stay(registered: TestClient) -> None:
    made = registered.post(
        "/v1/comparisons",
        json=asked(blind=True, sampling={"max_tokens": 2, "seed": 1}, prompts=["red "] * 32),
    ).json()
    with running_sampler():
        perform(made["run_id"])
    path, firsts = f"/v1/comparisons/{made['id']}", []
    for row in range(32):
        shown = registered.post(f"{path}/votes", json={"row": row, "preferred": "tie"}).json()
        again = registered.post(f"{path}/votes", json={"row": row, "preferred": "tie"}).json()
        assert shown["responses"] == again["responses"]
        firsts.append(shown["responses"][0]["model"])
    assert 4 < firsts.count("plain") < 28


def test_votes_become_a_dataset_with_annotators(registered: TestClient) -> None:
    made = finished_blind(registered)
    path = f"/v1/comparisons/{made['id']}"
    nothing = registered.post(f"{path}/dataset")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_preferred")
    votes = [
        (0, "B", "ann"),
        (0, "A", "bob"),
        (1, "A", "ann"),
        (1, "B", "ann"),
        (2, "tie", "ann"),
        (3, "both_bad", "bob"),
    ]
    for row, preferred, annotator in votes:
        body = {"row": row, "preferred": preferred, "annotator": annotator}
        assert registered.post(f"{path}/votes", json=body).status_code == 200
    rows = registered.get(path).json()["rows"]
    dataset = registered.post(f"{path}/dataset", headers={"Idempotency-Key": "once"})
    assert dataset.status_code == 202, dataset.text
    again = registered.post(f"{path}/dataset", headers={"Idempotency-Key": "once"})
    assert again.json()["id"] == dataset.json()["id"]
    with open_session() as session:
        location = session.get_one(Dataset, dataset.json()["id"]).location
    content = b"".join(storage().read_chunks(location or "")).decode()
    pairs = {pair["id"]: pair for pair in map(json.loads, content.splitlines())}
    assert set(pairs) == {"0:ann", "0:bob", "1:ann"}
    texts = {row["index"]: [r["text"] for r in row["responses"]] for row in rows}
    assert (pairs["0:ann"]["chosen"], pairs["0:ann"]["rejected"]) == (texts[0][1], texts[0][0])
    assert (pairs["0:bob"]["chosen"], pairs["0:bob"]["annotator"]) == (texts[0][0], "bob")
    assert pairs["1:ann"]["chosen"] == texts[1][1]  # the later vote


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"row": 0, "preferred": "C"}, 422),
        ({"row": -1, "preferred": "A"}, 422),
        ({"row": 99, "preferred": "A"}, 404),
        ({"row": 0, "preferred": "A", "annotator": ""}, 422),
        ({"row": 0, "preferred": "A", "annotator": "a\0b"}, 422),
    ],
)
def test_votes_that_are_refused(registered: TestClient, body: dict[str, Any], status: int) -> None:
    made = registered.post("/v1/comparisons", json=asked(sampling={"max_tokens": 2})).json()
    assert registered.post(f"/v1/comparisons/{made['id']}/votes", json=body).status_code == status


def test_who_compares_several_responses_is_told_that_nobody_votes_on_them(registered: TestClient) -> None:
    made = registered.post("/v1/comparisons", json=asked()).json()
    answer = registered.post(f"/v1/comparisons/{made['id']}/votes", json={"row": 0, "preferred": "A"})
    assert answer.status_code == 422
