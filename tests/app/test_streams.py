"""ETags, 304 and long polls."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from core.database import open_transaction
from core.tables import Dataset
from tests.factories import make_dataset


def new_dataset(**values: object) -> str:
    with open_transaction() as tx:
        return make_dataset(tx, **values).id


def rename(dataset_id: str, name: str) -> None:
    with open_transaction() as tx:
        tx.session.get_one(Dataset, dataset_id).name = name


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting(client: TestClient) -> int:
    app = client.app
    assert isinstance(app, FastAPI)
    return len(app.state.watcher._waiters)


def test_what_is_known_already_is_304(client: TestClient) -> None:
    path = f"/v1/datasets/{new_dataset()}"
    etag = client.get(path).headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        response = client.get(path, headers={"If-None-Match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
    rename(path.rpartition("/")[2], "other")
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("known", [True, False])
def test_a_long_poll_ends_when_the_object_changes(client: TestClient, known: bool) -> None:
    dataset_id = new_dataset()
    path = f"/v1/datasets/{dataset_id}"
    headers = {"If-None-Match": client.get(path).headers["etag"]} if known else {}
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.get, f"{path}?wait=30", headers=headers)
        until(lambda: waiting(client) == 1)
        rename(dataset_id, "changed")
        response = answer.result(timeout=10)
    assert (response.status_code, response.json()["name"]) == (200, "changed")
    assert waiting(client) == 0


def test_a_long_poll_ends_with_its_time(client: TestClient) -> None:
    path = f"/v1/datasets/{new_dataset()}"
    etag = client.get(path).headers["etag"]
    started = time.monotonic()
    assert client.get(f"{path}?wait=0.5", headers={"If-None-Match": etag}).status_code == 304
    assert client.get(f"{path}?wait=0.5").status_code == 200
    assert 1 <= time.monotonic() - started < 5


def test_an_old_etag_or_a_finished_object_is_answered_at_once(client: TestClient) -> None:
    invalid, awaiting = new_dataset(status="invalid"), new_dataset()
    started = time.monotonic()
    assert client.get(f"/v1/datasets/{invalid}?wait=60").status_code == 200
    headers = {"If-None-Match": '"old"'}
    assert client.get(f"/v1/datasets/{awaiting}?wait=60", headers=headers).status_code == 200
    assert time.monotonic() - started < 10


def test_a_wait_ends_when_the_object_is_deleted(client: TestClient) -> None:
    dataset_id = new_dataset()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.get, f"/v1/datasets/{dataset_id}?wait=30")
        until(lambda: waiting(client) == 1)
        assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 200
        assert answer.result(timeout=10).status_code == 404


@pytest.mark.parametrize("wait", ["61", "-1", "nan", "x"])
def test_a_wait_out_of_range_is_422(client: TestClient, wait: str) -> None:
    response = client.get(f"/v1/datasets/{new_dataset()}?wait={wait}")
    assert (response.status_code, response.json()["error"]["param"]) == (422, "wait")


async def until_waiting(app: FastAPI, count: int) -> None:
    async with asyncio.timeout(10):
        while len(app.state.watcher._waiters) < count:  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


def test_many_who_wait_hold_neither_threads_nor_sessions(client: TestClient) -> None:
    dataset_id, app, headers = new_dataset(), client.app, dict(client.headers)
    assert isinstance(app, FastAPI)

    async def many() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as asker:
            path = f"/v1/datasets/{dataset_id}?wait=30"
            polls = [asyncio.create_task(asker.get(path)) for _ in range(200)]
            await until_waiting(app, len(polls))
            # Forty threads and thirty connections would long be taken.
            assert (await asker.get("/v1/datasets")).status_code == 200
            await asyncio.to_thread(rename, dataset_id, "changed")
            answers = await asyncio.gather(*polls)
        await app.state.watcher.stop()
        return [answer.status_code for answer in answers]

    assert asyncio.run(many()) == [200] * 200


def test_a_client_that_goes_away_is_forgotten(client: TestClient) -> None:
    path, app = f"/v1/datasets/{new_dataset()}", client.app
    assert isinstance(app, FastAPI)
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"wait=60",
        "headers": [(b"authorization", client.headers["authorization"].encode())],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("t", 80),
        "root_path": "",
    }

    async def leave() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_: object) -> None:
            pass

        request = asyncio.create_task(app(scope, receive, send))
        await until_waiting(app, 1)
        gone.set()
        await asyncio.wait_for(request, 5)
        assert app.state.watcher._waiters == set()
        await app.state.watcher.stop()

    asyncio.run(leave())
