"""Postgres away: every route says so at once, and all goes on by itself."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from app.watching import Watcher
from core import connections
from core.bootstrap import ensure_admin_key
from core.database import open_transaction
from embedded import postgres
from tests.app.test_event_streams import ids, new_job, write
from tests.conftest import _forget
from tests.core.proxy import Proxy

ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/jobs/{job}", None),
    ("GET", "/v1/jobs/{job}?wait=30", None),
    ("GET", "/v1/jobs/{job}/events", None),
    ("GET", "/v1/datasets", None),
    ("GET", "/v1/queue", None),
    ("POST", "/v1/datasets", {"name": "d", "kind": "text"}),
    ("POST", "/v1/jobs/{job}/cancel", None),
    ("DELETE", "/v1/jobs/{job}", None),
    ("POST", "/v1/rewards", {"model": "tiny", "items": [{"prompt": "a", "response": "b"}]}),
]


@pytest.fixture
def proxy(servers: Any, database_url: str, settings_env: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The only way to the test's database."""
    made = Proxy(next(postgres.socket_folder(servers).glob(".s.PGSQL.*[0-9]")))
    url = make_url(database_url).set(host="127.0.0.1", port=made.port, query={})
    settings_env.setenv("MPO_DATABASE_URL", url.render_as_string(hide_password=False))
    settings_env.setattr(connections, "IDLE_ANSWER_SECONDS", 0.5)
    settings_env.setattr(connections, "READ_SECONDS", 0.5)
    settings_env.setattr(connections, "ANSWER_SECONDS", 1.0)
    settings_env.setattr(connections, "CONNECT_TIMEOUT_SECONDS", 2)
    _forget()
    yield made
    _forget()
    made.close()


@pytest.fixture
def client(proxy: Proxy, admin_key: str) -> Iterator[TestClient]:
    """As the usual one, by way of the proxy."""
    from app.main import create_app

    with open_transaction() as tx:
        ensure_admin_key(tx, admin_key)
    headers = {"Authorization": f"Bearer {admin_key}"}
    with TestClient(create_app(), headers=headers, raise_server_exceptions=False) as client:
        yield client


async def ask_all(client: TestClient, job_id: str, times: int = 1) -> list[httpx.Response]:
    transport = httpx.ASGITransport(app=client.app)  # type: ignore[arg-type]
    headers = {"Authorization": client.headers["authorization"]}
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as asker:
        asked = [
            asker.request(method, path.format(job=job_id), json=body) for method, path, body in ROUTES * times
        ]
        answers = await asyncio.gather(*asked)
    state = client.app.state  # type: ignore[attr-defined]
    await state.watcher.stop()
    state.watcher = Watcher()
    return answers


@pytest.mark.parametrize("how", ["frozen", "refused"])
def test_every_route_is_503_soon_and_all_goes_on_afterwards(
    client: TestClient, proxy: Proxy, how: str
) -> None:
    job_id = new_job()
    proxy.freeze() if how == "frozen" else proxy.close()
    started = time.monotonic()
    # More than there are threads and connections: each of them must be let go in time.
    answers = asyncio.run(ask_all(client, job_id, times=20))
    assert time.monotonic() - started < 15
    for answer in answers:
        assert answer.status_code == 503, f"{answer.request.method} {answer.request.url}: {answer.text}"
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["code"] == "database_unavailable"
    assert client.get("/healthz").status_code == 200
    if how == "frozen":
        proxy.thaw()
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        assert len({answer.status_code for answer in asyncio.run(ask_all(client, job_id))} & {503}) == 0


def write_when_let_in(job_id: str) -> None:
    """The end of the job, once the server is known to answer: while one caller tries, others are refused."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return write(job_id, 3, status="succeeded")
        except OperationalError:
            assert time.monotonic() < deadline


def test_a_stream_and_a_poll_live_through_an_outage(client: TestClient, proxy: Proxy) -> None:
    job_id = new_job()

    async def through_it() -> tuple[str, httpx.Response]:
        transport = httpx.ASGITransport(app=client.app)  # type: ignore[arg-type]
        headers = {"Authorization": client.headers["authorization"]}
        async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as asker:
            events = f"/v1/jobs/{job_id}/events"
            stream = asyncio.create_task(asker.get(events, headers={"Accept": "text/event-stream"}))
            poll = asyncio.create_task(asker.get(f"/v1/jobs/{job_id}?wait=30"))
            state = client.app.state  # type: ignore[attr-defined]
            async with asyncio.timeout(10):
                while not (state.feed.waiting_readers() and state.watcher._waiters):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            proxy.freeze()
            assert (await asker.get("/v1/jobs")).status_code == 503
            proxy.thaw()
            await asyncio.to_thread(write_when_let_in, job_id)
            answers = (await stream).text, await poll
            await state.feed.stop()
            await state.watcher.stop()
            return answers

    events, polled = asyncio.run(through_it())
    assert ids(events) == [1, 2, 3]
    assert polled.json()["status"] == "succeeded"
