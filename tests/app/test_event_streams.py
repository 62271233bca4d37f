"""Events as they come: complete, in order, to many readers at once, whatever one of them does."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event as sqlalchemy_event

from app import event_streams
from app.event_streams import EventFeed, EventStream, Place
from core.advance import lock_job
from core.database import engine, open_transaction
from core.events import write_event
from tests.app.serving import served
from tests.factories import make_dataset, make_job, make_key

STREAM = {"Accept": "text/event-stream"}


def new_job() -> str:
    with open_transaction() as tx:
        return make_job(tx, make_dataset(tx).id, status="running").id


def write(job_id: str, count: int, *, status: str | None = None) -> None:
    """The job's next events, and its end where one is given, in one transaction."""
    with open_transaction() as tx:
        job = lock_job(tx, job_id)
        assert job is not None
        for _ in range(count):
            write_event(tx, job, "stage.progress", "line one\nline two", data={"step": job.event_counter})
        if status is not None:
            job.status = status


def ids(content: str) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in content.splitlines() if line.startswith("id: ")]


def test_a_finished_job_tells_all_its_events_and_the_stream_ends(client: TestClient) -> None:
    job_id = new_job()
    write(job_id, 250, status="succeeded")
    response = client.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert ids(response.text) == list(range(1, 251))
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    listed = client.get(f"/v1/jobs/{job_id}/events?limit=100").json()["data"]
    assert [json.loads(line) for line in data][:100] == listed
    assert "event: stage.progress\n" in response.text


@pytest.mark.parametrize("by", ["header", "query", "both"])
def test_a_stream_goes_on_behind_the_last_event_that_was_received(client: TestClient, by: str) -> None:
    job_id = new_job()
    write(job_id, 9, status="failed")
    headers = STREAM if by == "query" else STREAM | {"Last-Event-ID": "6"}
    query = {"header": "", "query": "?after=6", "both": "?after=2"}[by]
    assert ids(client.get(f"/v1/jobs/{job_id}/events{query}", headers=headers).text) == [7, 8, 9]


@pytest.mark.parametrize("known", ["x", "-1", "1.5", str(2**63)])
def test_an_id_that_no_event_can_have_is_422(client: TestClient, known: str) -> None:
    response = client.get(f"/v1/jobs/{new_job()}/events", headers=STREAM | {"Last-Event-ID": known})
    assert (response.status_code, response.json()["errors"][0]["loc"]) == (422, ["header", "Last-Event-ID"])


def test_nobody_streams_what_is_not_theirs(client: TestClient) -> None:
    job_id = new_job()
    for path, headers in ((job_id, make_key("read", owner="bob")), ("job_none", {})):
        response = client.get(f"/v1/jobs/{path}/events", headers=STREAM | headers)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_a_stream_of_a_job_that_is_deleted_ends(client: TestClient) -> None:
    job_id = new_job()
    write(job_id, 1, status="cancelled")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    found = event_streams.read_beyond({Place(job_id, 1), Place("job_none", 0)})
    assert all(news.ended and not news.content for news in found.values())
    assert len(found) == 2


def test_whoever_joins_in_the_middle_sees_every_event_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(event_streams, "PAGE", 7)
    job_id = new_job()
    headers = {"Authorization": client.headers["authorization"], **STREAM}

    async def read(asker: httpx.AsyncClient) -> list[int]:
        return ids((await asker.get(f"/v1/jobs/{job_id}/events")).text)

    async def read_in_pieces(asker: httpx.AsyncClient) -> list[int]:
        """Reads three events, hangs up, and comes again."""
        seen: list[int] = []
        while True:
            known = {"Last-Event-ID": str(seen[-1])} if seen else {}
            async with asker.stream("GET", f"/v1/jobs/{job_id}/events", headers=known) as response:
                new: list[int] = []
                async for line in response.aiter_lines():
                    new += ids(line)
                    if len(new) == 3:
                        break
            seen += new
            if len(new) < 3:
                return seen

    async def join(url: str) -> list[list[int]]:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as asker:
            readers = []
            for at in range(20):
                await asyncio.to_thread(write, job_id, 3, status="succeeded" if at == 19 else None)
                readers.append(asyncio.create_task((read_in_pieces if at % 10 == 0 else read)(asker)))
            return await asyncio.gather(*readers)

    with served(client.app) as url:  # type: ignore[arg-type]
        seen = asyncio.run(join(url))
    assert seen == [list(range(1, 61))] * 20


class Reader:
    """An ASGI connection: what a server would send, and when its client goes."""

    def __init__(self, feed: EventFeed, job_id: str, room: asyncio.Event | None = None) -> None:
        self.content = bytearray()
        self.gone, self._room = asyncio.Event(), room
        self.task = asyncio.create_task(EventStream(feed, Place(job_id, 0))({}, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._room is not None and message.get("body"):
            await self._room.wait()
        self.content += message.get("body", b"")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


def test_a_thousand_readers_cost_one_statement_a_look_and_no_thread(client: TestClient) -> None:
    job_ids = [new_job() for _ in range(4)]
    statements: list[str] = []

    def count(_: object, __: object, statement: str, *___: object) -> None:
        if "unnest" in statement:
            statements.append(statement)

    async def many() -> list[bytes]:
        feed, threads = EventFeed(), threading.active_count()
        room = asyncio.Event()
        readers = [Reader(feed, job_ids[n % 4]) for n in range(1000)]
        slow = Reader(feed, job_ids[0], room)
        await until(lambda: feed.waiting_readers() == 1000)
        started, looked = asyncio.get_running_loop().time(), len(statements)
        for job_id in job_ids:
            await asyncio.to_thread(write, job_id, 2)
        await until(lambda: all(reader.content.count(b"id: ") == 2 for reader in readers))
        looks = (asyncio.get_running_loop().time() - started) / event_streams.LOOK_SECONDS
        assert len(statements) - looked <= looks + 2
        assert threading.active_count() <= threads + 4
        assert engine().pool.checkedout() == 0  # type: ignore[attr-defined]
        for job_id in job_ids:
            await asyncio.to_thread(write, job_id, 1, status="succeeded")
        await asyncio.gather(*(reader.task for reader in readers))
        assert not slow.content, "it took nothing, and nobody waited for it"
        room.set()
        await slow.task
        await feed.stop()
        return [bytes(reader.content) for reader in (*readers, slow)]

    sqlalchemy_event.listen(engine(), "before_cursor_execute", count)
    seen = asyncio.run(many())
    assert {tuple(ids(content.decode())) for content in seen} == {(1, 2, 3)}


def test_a_client_that_goes_away_is_forgotten(client: TestClient) -> None:
    job_id = new_job()

    async def leave() -> None:
        feed = EventFeed()
        reader, blocked = Reader(feed, job_id), Reader(feed, job_id, asyncio.Event())
        await until(lambda: feed.waiting_readers() == 1)
        reader.gone.set()
        await asyncio.wait_for(reader.task, 5)
        assert feed.waiting_readers() == 0
        blocked.task.cancel()
        await asyncio.wait({blocked.task})
        await feed.stop()

    asyncio.run(leave())


def test_silence_is_filled_and_a_client_that_takes_nothing_given_up(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "KEEP_ALIVE_SECONDS", 0.02)
    monkeypatch.setattr(event_streams, "SEND_SECONDS", 0.1)
    job_id = new_job()

    async def listen() -> None:
        feed = EventFeed()
        reader, blocked = Reader(feed, job_id), Reader(feed, job_id, asyncio.Event())
        await until(lambda: reader.content.count(b": ") >= 3)
        await asyncio.wait_for(blocked.task, 5)
        await feed.stop()
        await asyncio.wait_for(reader.task, 5)
        assert ids(reader.content.decode()) == []

    asyncio.run(listen())


def test_a_stop_of_the_server_ends_streams_at_once(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    job_id = new_job()

    async def stop() -> None:
        feed = EventFeed()
        reader = Reader(feed, job_id)
        await until(lambda: feed.waiting_readers() == 1)
        await feed.stop()
        await asyncio.wait_for(reader.task, 5)
        late = Reader(feed, job_id)
        await asyncio.wait_for(late.task, 5)

    asyncio.run(stop())
