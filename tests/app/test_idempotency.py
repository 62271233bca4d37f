"""Idempotency-Key: one answer for one key and body, whatever happens around it."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update

from app import idempotency
from core.database import open_session, open_transaction
from core.idempotency import KEPT, purge_keys
from core.storage import Storage
from core.tables import ApiKey, Comparison, Dataset, Evaluation, IdempotencyKey, Job
from tests.app.jobs.factories import make_dataset, make_model
from tests.app.serving import served, serving_process, through
from tests.factories import json_lines, make_key, pairs

KEY = {"Idempotency-Key": "one"}
DATASET = {"name": "pairs", "kind": "preference"}


def count(table: type[Any]) -> int:
    with open_session() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def form(content: bytes = json_lines(pairs(4)), name: str = "pairs") -> dict[str, Any]:
    file = ("pairs.jsonl", content, "application/jsonl")
    return {"data": {"name": name, "kind": "preference"}, "files": {"file": file}}


def same_answer(first: httpx.Response, second: httpx.Response) -> bool:
    told = ("location", "content-type", "cache-control")
    return (first.status_code, first.content, [first.headers.get(n) for n in told]) == (
        second.status_code,
        second.content,
        [second.headers.get(n) for n in told],
    )


def test_a_job_is_made_once_and_its_answer_given_again(client: TestClient, spec: dict[str, Any]) -> None:
    first = client.post("/v1/jobs", json=spec, headers=KEY)
    assert (first.status_code, "idempotent-replayed" in first.headers) == (202, False)
    client.post(f"{first.headers['location']}/cancel")
    again = client.post("/v1/jobs", json=spec, headers=KEY)
    assert again.headers["idempotent-replayed"] == "true"
    assert same_answer(first, again)
    assert count(Job) == 1


@pytest.mark.parametrize("made", ["json", "form", "model", "comparison", "evaluation"])
def test_everything_that_is_made_is_made_once(
    client: TestClient, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "json": ("/v1/datasets", {"json": DATASET}),
        "form": ("/v1/datasets", form()),
        "model": ("/v1/models", {"json": {"name": "mine", "path": str(shipped_model())}}),
        "comparison": ("/v1/comparisons", {"json": {"models": [model, "other"], "prompts": ["hi"]}}),
        "evaluation": ("/v1/evaluations", {"json": {"models": [model], "judge": "scorer"}}),
    }
    if made == "model":
        monkeypatch.setattr("app.models.service.allowed_folder", lambda path: Path(path))
    if made == "comparison":
        make_model("other")
    if made == "evaluation":
        make_model("scorer", kind="reward_model")
        requests[made][1]["json"]["dataset"] = make_dataset(tmp_path)
    path, body = requests[made]
    first, again = (client.post(path, headers=KEY, **body) for _ in range(2))
    assert first.status_code in (201, 202), first.text
    assert again.headers["idempotent-replayed"] == "true"
    assert same_answer(first, again)
    assert first.headers["location"]
    assert count(Dataset) == (made in ("json", "form", "evaluation"))
    assert count(Evaluation) == (made == "evaluation")
    assert count(Comparison) == (made == "comparison")
    assert len(list((tmp_path / "store").rglob("uploads/*"))) == (made == "form")


def shipped_model() -> Path:
    return Path(__file__).resolve().parents[2] / "examples" / "tiny"


def test_a_comparison_that_is_waited_for_is_the_same_one(client: TestClient, model: str) -> None:
    body = {"models": [model, make_model("other")], "prompts": ["hi"]}
    first, again = (client.post("/v1/comparisons?wait=0.1", json=body, headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"


def test_the_secret_of_an_api_key_is_neither_kept_nor_replayed(client: TestClient) -> None:
    first, again = (client.post("/v1/keys", json={"name": "n"}, headers=KEY) for _ in range(2))
    secret = first.json()["key"]
    assert first.json() | {"key": None} == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert count(ApiKey) == 2  # the caller's own
    with open_session() as session:
        kept = session.scalars(select(IdempotencyKey.body)).one()
    assert secret not in (kept or "")


def test_another_body_under_the_same_key_is_refused(client: TestClient) -> None:
    client.post("/v1/datasets", json=DATASET, headers=KEY)
    other = client.post("/v1/datasets", json={**DATASET, "name": "other"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert other.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    assert count(Dataset) == 1


def test_a_form_is_another_one_by_its_content_or_its_fields(client: TestClient, store: Path) -> None:
    assert client.post("/v1/datasets", headers=KEY, **form()).status_code == 202
    for other in (form(json_lines(pairs(5))), form(name="other")):
        assert client.post("/v1/datasets", headers=KEY, **other).status_code == 422
    assert count(Dataset) == 1
    assert len(list(store.rglob("uploads/*"))) == 1


def test_the_same_body_may_be_written_otherwise(client: TestClient) -> None:
    first = client.post("/v1/datasets", content='{"name":"a","kind":"text"}', headers=KEY)
    again = client.post("/v1/datasets", content='{ "kind": "text",\n"name": "a" }', headers=KEY)
    assert same_answer(first, again)


def test_owners_and_paths_have_keys_of_their_own(client: TestClient) -> None:
    first = client.post("/v1/datasets", json=DATASET, headers=KEY)
    other = client.post("/v1/datasets", json=DATASET, headers=KEY | make_key("write", owner="bob"))
    assert first.json()["id"] != other.json()["id"]
    assert client.post("/v1/keys", json={"name": "n"}, headers=KEY).status_code == 201
    second_key = client.post("/v1/datasets", json=DATASET, headers=KEY | make_key("write"))
    assert second_key.json()["id"] == first.json()["id"]


def test_an_error_leaves_the_key_free(client: TestClient, spec: dict[str, Any]) -> None:
    wrong = client.post("/v1/jobs", json=spec | {"model": "nobody"}, headers=KEY)
    assert wrong.status_code == 422
    assert count(IdempotencyKey) == 0
    assert client.post("/v1/jobs", json=spec, headers=KEY).status_code == 202


def test_a_dry_run_takes_no_key(client: TestClient, spec: dict[str, Any]) -> None:
    assert client.post("/v1/jobs?dry_run=true", json=spec, headers=KEY).status_code == 200
    assert (count(IdempotencyKey), count(Job)) == (0, 0)


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb"], ids=["empty", "long", "not ASCII", "a tab"])
def test_a_key_that_cannot_be_one_is_422(client: TestClient, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    response = client.post("/v1/datasets", json=DATASET, headers=headers)
    assert (response.status_code, response.json()["errors"][0]["loc"][0]) == (422, "header")


def test_answers_are_purged_after_a_day_and_not_before(client: TestClient) -> None:
    keys: list[dict[str, str]] = [{"Idempotency-Key": key} for key in ("old", "new")]
    for key in keys:
        client.post("/v1/datasets", json=DATASET, headers=key)
    with open_transaction() as tx:
        age = func.clock_timestamp() - KEPT - timedelta(minutes=1)
        tx.session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created_at=age))
        tx.session.flush()
        assert purge_keys(tx) == 1
    answers = [client.post("/v1/datasets", json=DATASET, headers=key) for key in keys]
    assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, True]


@contextmanager
def held(dataset_id: str) -> Iterator[None]:
    """A job that reads the dataset cannot be made meanwhile: its transaction waits for the row."""
    with open_transaction() as tx:
        tx.session.get_one(Dataset, dataset_id, with_for_update=True)
        yield


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting_backends() -> int:
    statement = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with open_session() as session:
        return session.scalar(text(statement)) or 0


def test_a_twin_of_a_request_in_progress_is_asked_to_come_again(
    client: TestClient, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE_SECONDS", 0.2)
    with ThreadPoolExecutor() as pool:
        with held(spec["dataset"]):
            first = pool.submit(client.post, "/v1/jobs", json=spec, headers=KEY)
            until(lambda: waiting_backends() == 1)
            twin = client.post("/v1/jobs", json=spec, headers=KEY)
            assert (twin.status_code, twin.json()["code"]) == (409, "idempotency_key_in_progress")
            assert twin.headers["x-should-retry"] == "true"
            # A server beside this one knows of the first by the database alone.
            client.app.state.twins.clear()  # type: ignore[attr-defined]
            twin = client.post("/v1/jobs", json=spec, headers=KEY)
            assert (twin.status_code, twin.json()["code"]) == (409, "idempotency_key_in_progress")
        assert first.result(20).status_code == 202
    assert client.post("/v1/jobs", json=spec, headers=KEY).headers["idempotent-replayed"] == "true"


def test_a_twin_waits_for_the_answer(client: TestClient, spec: dict[str, Any]) -> None:
    with ThreadPoolExecutor() as pool:
        with held(spec["dataset"]):
            first = pool.submit(client.post, "/v1/jobs", json=spec, headers=KEY)
            until(lambda: waiting_backends() == 1)
            client.app.state.twins.clear()  # type: ignore[attr-defined]
            twin = pool.submit(client.post, "/v1/jobs", json=spec, headers=KEY)
            until(lambda: waiting_backends() == 2)
        assert same_answer(first.result(20), twin.result(20))


def test_what_a_retry_cannot_mend_says_so(client: TestClient, spec: dict[str, Any]) -> None:
    path = client.post("/v1/jobs", json=spec).headers["location"]
    refused = client.delete(path)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")


def test_fifty_identical_submissions_at_once_make_one_job(client: TestClient, spec: dict[str, Any]) -> None:
    headers = {"Authorization": client.headers["authorization"], **KEY}

    async def submit(url: str) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=30) as asker:
            return await asyncio.gather(*(patiently(asker) for _ in range(50)))

    async def patiently(asker: httpx.AsyncClient) -> httpx.Response:
        # A busy machine may make a twin wait for longer than the server lets it: then it is to ask again.
        while (answer := await asker.post("/v1/jobs", json=spec)).status_code == 409:
            assert answer.headers["x-should-retry"] == "true"
        return answer

    with served(client.app) as url, served(client.app) as other:  # type: ignore[arg-type]
        answers = asyncio.run(submit(url))
        answers += asyncio.run(submit(other))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert count(Job) == 1


def test_a_server_that_is_killed_leaves_neither_key_nor_job(
    client: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    headers = {"Authorization": client.headers["authorization"], **KEY}
    socket = tmp_path / "s"
    with ThreadPoolExecutor() as pool, through(socket) as asker:
        with serving_process(socket) as server:
            with held(spec["dataset"]):
                lost = pool.submit(asker.post, "/v1/jobs", json=spec, headers=headers)
                until(lambda: waiting_backends() == 1)
                server.send_signal(signal.SIGKILL)
                with pytest.raises(httpx.TransportError):
                    lost.result(20)
            until(lambda: waiting_backends() == 0)
        until(lambda: others() == 0)
        assert (count(Job), count(IdempotencyKey)) == (0, 0)
    assert client.post("/v1/jobs", json=spec, headers=KEY).status_code == 202
    assert count(Job) == 1


def others() -> int:
    """Backends that are in a transaction, this one left out."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    with open_session() as session:
        return session.scalar(text(statement)) or 0


def test_an_upload_that_loses_to_a_store_that_is_away_leaves_the_key_free(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "upload", away)
        assert client.post("/v1/datasets", headers=KEY, **form()).status_code == 500
    assert client.post("/v1/datasets", headers=KEY, **form()).status_code == 202


def away(*_: object) -> None:
    raise OSError("no space left")
