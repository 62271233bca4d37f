"""SIGTERM to a real server: what waits is answered at once, what is under way is finished, then it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from core.bootstrap import ensure_admin_key
from core.database import open_session, open_transaction
from core.tables import Job
from tests.app.jobs.factories import make_dataset, make_model
from tests.embedded.waiting import wait_for

CODE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("settings_env")


@pytest.fixture
def server(tmp_path: Path, admin_key: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """uvicorn with the application, which would wait a minute for requests under way."""
    with open_transaction() as tx:
        ensure_admin_key(tx, admin_key)
    with socket.create_server(("127.0.0.1", 0)) as listening, (tmp_path / "log").open("ab") as log:
        os.set_inheritable(listening.fileno(), True)
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--fd", str(listening.fileno())]
        process = subprocess.Popen(
            [*command, "--timeout-graceful-shutdown", "60", "--log-level", "warning"],
            cwd=CODE, stdout=log, stderr=log, pass_fds=[listening.fileno()],
        )  # fmt: skip
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {admin_key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            try:
                assert client.get("/healthz").status_code == 200
                yield process, client
            finally:
                process.kill()
                process.wait()


def test_what_waits_is_let_go_at_once_and_what_is_under_way_is_finished(
    server: tuple[subprocess.Popen[bytes], httpx.Client], tmp_path: Path
) -> None:
    process, client = server
    spec = {"model": make_model(), "dataset": make_dataset(tmp_path), "method": {"type": "mpo"}}
    job = client.post("/v1/jobs", json={**spec, "name": "first"}).json()
    with (
        ThreadPoolExecutor() as threads,
        ending(process),
        half_a_request(client, {**spec, "name": "second"}) as finish,
    ):
        poll = threads.submit(client.get, f"/v1/jobs/{job['id']}", params={"wait": 60})
        streaming = Event()
        stream = threads.submit(read_stream, client, f"/v1/jobs/{job['id']}/events", streaming)
        wait_for(is_watching)
        assert streaming.wait(20)

        process.send_signal(signal.SIGTERM)

        assert poll.result(20).json()["id"] == job["id"]
        assert "event: job.created" in stream.result(20)
        assert process.poll() is None, "a request is still under way"
        process.send_signal(signal.SIGTERM)
        assert finish().startswith(b"HTTP/1.1 202 ")
        process.wait(20)
    with open_session() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Where the test fails, threads that wait for this process end too."""
    try:
        yield
    finally:
        process.kill()


def read_stream(client: httpx.Client, path: str, begun: Event) -> str:
    said = []
    with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
        for piece in response.iter_text():
            said.append(piece)
            if "event:" in piece:
                begun.set()
    return "".join(said)


def is_watching() -> bool:
    """Whether the server looks for changes, as it does only while a long poll waits."""
    looks = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE :look"
    with open_session() as session:
        return bool(session.scalar(text(looks), {"look": "%FROM jobs AS job CROSS JOIN LATERAL%"}))


@contextmanager
def half_a_request(client: httpx.Client, body: dict[str, Any]) -> Iterator[Callable[[], bytes]]:
    """A submission that the server has begun to read; the call sends the rest and returns the answer."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((str(client.base_url.host), client.base_url.port or 0), 30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")

        def finish() -> bytes:
            connection.sendall(content)
            return connection.recv(10_000)

        yield finish
