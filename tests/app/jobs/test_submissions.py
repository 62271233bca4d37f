"""Submissions that wait at the same moment: made in one transaction, each as if it were alone."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, OperationalError

from app.jobs import submissions
from core.database import open_session, open_transaction
from core.tables import Event, IdempotencyKey, Job, Run, StageRow
from tests.app.jobs.factories import OWNER, work_until
from tests.app.statements import counted

Spec = dict[str, Any]
TOGETHER = 12


def submit_all(client: TestClient, specs: list[Spec], keys: list[str] | None = None) -> list[httpx.Response]:
    """All at once, on one event loop. keys: an Idempotency-Key for each."""

    def keyed(number: int) -> dict[str, str]:
        return {"Idempotency-Key": keys[number]} if keys else {}

    async def submit() -> list[httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        headers = {"Authorization": client.headers["Authorization"]}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
            await http.get("/v1/jobs")  # reads the key, which would let one go ahead of the others
            asked = (
                http.post("/v1/jobs", json=spec, headers={"x-request-id": f"req_{number}"} | keyed(number))
                for number, spec in enumerate(specs)
            )
            return await asyncio.gather(*asked)

    return asyncio.run(submit())


def seeds(spec: Spec, count: int = TOGETHER) -> list[Spec]:
    return [spec | {"seed": 1000 + number} for number in range(count)]


def count(table: type[Any]) -> int:
    with open_session() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def see_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all that there is had come between the look and the INSERT, by another process."""
    look_for = submissions.look_for

    def looked_before(*arguments: Any) -> Any:
        found = look_for(*arguments)
        return type(found)(found.moment, frozenset())

    monkeypatch.setattr(submissions, "look_for", looked_before)
    client.app.state.submissions = submissions.Submissions()  # type: ignore[attr-defined]


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each transaction was asked for."""
    sizes: list[int] = []
    together = submissions.create_together

    def noted(taken: list[submissions.Submission]) -> list[submissions.Outcome]:
        sizes.append(len(taken))
        return together(taken)

    monkeypatch.setattr(submissions, "create_together", noted)
    return sizes


def test_those_that_wait_share_a_transaction(client: TestClient, spec: Spec, transactions: list[int]) -> None:
    with counted() as sent:
        answers = submit_all(client, seeds(spec))
    assert [answer.status_code for answer in answers] == [202] * TOGETHER
    assert sum(transactions) == TOGETHER
    assert max(transactions) >= TOGETHER // 2
    inserts = [statement for statement in sent if "INSERT INTO jobs" in statement]
    assert len(inserts) == len(transactions)


def test_each_is_answered_as_it_will_be_read(client: TestClient, spec: Spec) -> None:
    for answer in submit_all(client, seeds(spec)):
        told = answer.json()
        read = client.get(answer.headers["location"]).json()
        assert read | {"queue_position": None} == told | {"queue_position": None}
        assert told["stages"][0]["status"] == "queued"
    with open_session() as session:
        ids = set(session.scalars(select(Job.id)))
        assert len(ids) == TOGETHER
        assert {run.job_id for run in session.scalars(select(Run).where(Run.kind == "hold_out"))} == ids
        assert set(session.scalars(select(Event.job_id))) == ids
        assert set(session.scalars(select(StageRow.job_id))) == ids


def test_jobs_and_runs_carry_the_request_that_asked_for_them(client: TestClient, spec: Spec) -> None:
    specs = seeds(spec)
    submit_all(client, specs)
    asked = {each["seed"]: f"req_{number}" for number, each in enumerate(specs)}
    with open_session() as session:
        assert {job.seed: job.request_id for job in session.scalars(select(Job))} == asked
        runs = select(Run).where(Run.kind == "hold_out")
        assert {run.seed: run.request_id for run in session.scalars(runs)} == asked


def test_one_that_is_refused_refuses_no_other(client: TestClient, spec: Spec) -> None:
    specs = seeds(spec)
    specs[3] = specs[3] | {"dataset": "ds_00000000000000000000000000"}
    specs[7] = specs[7] | {"model": "no-such-model"}
    answers = submit_all(client, specs)
    refused = {number for number, answer in enumerate(answers) if answer.status_code == 422}
    assert refused == {3, 7}
    assert answers[3].json()["errors"][0]["loc"] == ["body", "dataset"]
    assert answers[7].json()["errors"][0]["loc"] == ["body", "model"]
    assert count(Job) == TOGETHER - 2
    assert count(Event) == TOGETHER - 2


def test_the_same_spec_twice_makes_two_jobs_of_one_run(client: TestClient, spec: Spec) -> None:
    answers = submit_all(client, [spec] * TOGETHER)
    assert [answer.status_code for answer in answers] == [202] * TOGETHER
    assert len({answer.json()["id"] for answer in answers}) == TOGETHER
    assert count(Run) == 1
    work_until()
    with open_session() as session:
        assert set(session.scalars(select(Job.status))) == {"succeeded"}


def test_what_is_done_already_is_not_done_again(client: TestClient, spec: Spec) -> None:
    """Another process has made the job: nothing here remembers it."""
    client.post("/v1/jobs", json=seeds(spec)[0])
    work_until()
    runs = count(Run)
    client.app.state.submissions = submissions.Submissions()  # type: ignore[attr-defined]
    answers = submit_all(client, seeds(spec, 3))
    assert [answer.json()["status"] for answer in answers] == ["succeeded", "queued", "queued"]
    assert count(Run) == runs + 2


def test_a_run_that_comes_in_between_is_waited_for(
    client: TestClient, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued after the look, by another process: whoever wants the same joins it, and the others go on."""
    other = client.post("/v1/jobs", json=seeds(spec)[0]).json()
    see_nothing(client, monkeypatch)
    first, second = submit_all(client, seeds(spec, 2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["stages"][0]["run_id"] == other["stages"][0]["run_id"]
    assert count(Run) == 2


def test_work_that_is_published_in_between_is_not_done_again(
    client: TestClient, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/v1/jobs", json=seeds(spec)[0])
    work_until()
    see_nothing(client, monkeypatch)
    answers = submit_all(client, seeds(spec, 2))
    assert [answer.json()["status"] for answer in answers] == ["succeeded", "queued"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (lambda: IntegrityError("INSERT", {}, Exception()), 202),
        (lambda: RuntimeError("a defect"), 202),
        (lambda: OperationalError("COMMIT", {}, Exception()), 503),
    ],
)
def test_an_error_of_the_transaction_is_no_error_of_its_jobs(
    client: TestClient,
    spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], Exception],
    status: int,
) -> None:
    """Each is tried by itself; not where the database is away, for which each would wait anew."""

    def fail(*_arguments: object) -> None:
        raise error()

    monkeypatch.setattr(submissions, "insert_jobs", fail)
    answers = submit_all(client, seeds(spec))
    assert {answer.status_code for answer in answers} == {status}
    made = TOGETHER if status == 202 else 0
    assert (count(Job), count(Run), count(Event)) == (made, made, made)


def test_keyed_ones_leave_their_answers_behind(
    client: TestClient, spec: Spec, transactions: list[int]
) -> None:
    keys = [f"key {number}" for number in range(TOGETHER)]
    first = submit_all(client, seeds(spec), keys)
    assert max(transactions) >= TOGETHER // 2
    again = submit_all(client, seeds(spec), keys)
    assert [answer.content for answer in again] == [answer.content for answer in first]
    assert {answer.headers["idempotent-replayed"] for answer in again} == {"true"}
    assert [answer.headers["location"] for answer in again] == [a.headers["location"] for a in first]
    assert count(Job) == TOGETHER


def test_a_key_of_another_request_is_refused_and_the_others_are_made(client: TestClient, spec: Spec) -> None:
    keys = [f"key {number}" for number in range(TOGETHER)]
    kept = client.post("/v1/jobs", json=seeds(spec)[5], headers={"Idempotency-Key": keys[5]})
    client.app.state.submissions = submissions.Submissions()  # type: ignore[attr-defined]
    changed = [each | {"seed": each["seed"] + 50} if n == 5 else each for n, each in enumerate(seeds(spec))]
    answers = submit_all(client, changed, keys)
    refused = answers.pop(5)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert {answer.status_code for answer in answers} == {202}
    assert kept.json()["id"] not in {answer.json()["id"] for answer in answers}
    assert count(Job) == TOGETHER


def test_the_key_of_a_refused_request_is_free_again(client: TestClient, spec: Spec) -> None:
    keys = [f"key {number}" for number in range(TOGETHER)]
    specs = seeds(spec)
    specs[3] = specs[3] | {"model": "no-such-model"}
    assert submit_all(client, specs, keys)[3].status_code == 422
    made = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": keys[3]})
    assert (made.status_code, "idempotent-replayed" in made.headers) == (202, False)


def test_a_twin_that_is_under_way_elsewhere_is_waited_for_by_nobody_else(
    client: TestClient, spec: Spec
) -> None:
    with open_transaction() as tx:
        tx.session.add(
            IdempotencyKey(owner=OWNER, path="/v1/jobs", key="taken", fingerprint=b"another request")
        )
        tx.session.flush()
        with ThreadPoolExecutor(1) as pool:
            keys = ["taken", *(f"key {number}" for number in range(TOGETHER - 1))]
            answering = pool.submit(submit_all, client, seeds(spec), keys)
            assert answering.result(timeout=30)[0].status_code == 409
        assert {answer.status_code for answer in answering.result()[1:]} == {202}
        tx.session.rollback()
    assert count(Job) == TOGETHER - 1


def test_a_full_queue_refuses_what_is_beyond_it(
    client: TestClient, spec: Spec, settings_env: pytest.MonkeyPatch
) -> None:
    from core.settings import settings

    settings_env.setenv("MPO_MAX_OPEN_JOBS", "5")
    settings.cache_clear()
    answers = submit_all(client, seeds(spec))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [202] * 5 + [429] * (TOGETHER - 5)
    assert count(Job) == 5
