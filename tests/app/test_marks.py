"""Marks: whatever changes in a view changes its ETag, and many who ask are answered from one statement."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app import authentication
from app.marks import Marks
from core import queue
from core.database import open_transaction
from core.work_items import ClaimedRun
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import work_until
from tests.app.statements import counted
from tests.app.test_streams import new_dataset, until, waiting
from tests.factories import make_key


def write(statement: str) -> None:
    with open_transaction() as tx:
        tx.session.execute(text(statement))


def claim() -> ClaimedRun:
    with open_transaction() as tx:
        claimed = queue.claim(tx, "cpu", "w")
    assert claimed is not None
    return claimed


def progress(step: int) -> None:
    with open_transaction() as tx:
        queue.record_progress(tx, held[0], {"step": step, "total_steps": 9}, {step: {"loss": 0.5}}, "")


def crash() -> None:
    with open_transaction() as tx:
        queue.crash(tx, held[0], {"code": "crashed", "message": "", "output": None})


held: list[ClaimedRun] = []
CHANGES: dict[str, Callable[[], None]] = {
    "a stage alone": lambda: write("UPDATE stages SET status = 'paused' WHERE name = 'split'"),
    "a stage that joins another run": lambda: write(
        "UPDATE stages SET run_id = NULL WHERE name = 'hold_out'"
    ),
    "the progress of its run": lambda: progress(3),
    "another attempt of its run": crash,
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_in_a_job_changes_its_etag_and_ends_a_wait(
    client: TestClient, create_job: CreateJob, what: str
) -> None:
    path = f"/v1/jobs/{create_job()['id']}"
    held[:] = [claim()]
    first = client.get(path)
    known = {"If-None-Match": first.headers["etag"]}
    with ThreadPoolExecutor() as pool:
        waited = pool.submit(client.get, f"{path}?wait=30", headers=known)
        until(lambda: waiting(client) == 1)
        assert client.get(path, headers=known).status_code == 304
        CHANGES[what]()
        answer = client.get(path, headers=known)
        assert answer.status_code == 200
        assert answer.json() != first.json()
        assert waited.result(timeout=10).json() == answer.json()


def test_a_renewed_lease_changes_nothing(client: TestClient, create_job: CreateJob) -> None:
    job, claimed = create_job(), claim()
    paths = f"/v1/jobs/{job['id']}", f"/v1/runs/{claimed.id}"
    before = [client.get(path) for path in paths]
    with open_transaction() as tx:
        queue.renew(tx, claimed)
    for path, answer in zip(paths, before, strict=True):
        known = {"If-None-Match": answer.headers["etag"]}
        assert client.get(path, headers=known).status_code == 304


def test_a_move_in_the_queue_changes_the_etag(client: TestClient, create_job: CreateJob) -> None:
    create_job()
    path = f"/v1/jobs/{create_job(seed=1)['id']}"
    second = client.get(path)
    claim()
    moved = client.get(path, headers={"If-None-Match": second.headers["etag"]})
    assert (second.json()["queue_position"], moved.json()["queue_position"]) == (2, 1)


def test_a_run_s_etag_changes_with_the_other_runs_of_its_key(
    client: TestClient, create_job: CreateJob
) -> None:
    first = create_job()
    work_until()
    shown = client.get(f"/v1/jobs/{first['id']}").json()["stages"][0]
    path = f"/v1/runs/{shown['run_id']}"
    etag = client.get(path).headers["etag"]
    write(f"UPDATE artifacts SET deleted_at = now() WHERE run_id = '{shown['run_id']}'")
    emptied = client.get(path, headers={"If-None-Match": etag})
    assert emptied.json()["artifacts"] == {}
    create_job()
    again = client.get(path, headers={"If-None-Match": emptied.headers["etag"]})
    assert len(again.json()["attempts"]) == 2


def test_who_asks_at_one_moment_is_answered_from_one_statement(client: TestClient) -> None:
    ids = [new_dataset() for _ in range(30)]

    async def ask() -> list[bool]:
        marks = Marks()
        found = await asyncio.gather(
            *(marks.read(("dataset", id_)) for id_ in [*ids, "ds_x", "job_" + "0" * 26])
        )
        return [mark is not None for mark in found]

    with counted() as sent:
        assert asyncio.run(ask()) == [*[True] * 30, False, False]
    assert len(sent) == 1


def test_who_goes_away_leaves_the_others_their_answer(client: TestClient) -> None:
    dataset_id = new_dataset()

    async def ask() -> bool:
        marks = Marks()
        leaves, stays = (asyncio.create_task(marks.read(("dataset", dataset_id))) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        return await stays is not None

    assert asyncio.run(ask())


def test_an_unchanged_object_is_read_once(
    client: TestClient, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "TRUSTED_SECONDS", 3600.0)
    path = f"/v1/jobs/{create_job()['id']}"
    client.get(path)
    with counted() as sent:
        assert client.get(path).status_code == 200
    # Its mark and its place in the queue.
    assert len(sent) == 2, sent


def test_an_answer_at_hand_is_for_its_owner_alone(client: TestClient, create_job: CreateJob) -> None:
    path = f"/v1/jobs/{create_job()['id']}"
    etag = client.get(path).headers["etag"]
    stranger = make_key("read", owner="stranger")
    assert client.get(path, headers=stranger).status_code == 404
    assert client.get(path, headers={**stranger, "If-None-Match": etag}).status_code == 404
