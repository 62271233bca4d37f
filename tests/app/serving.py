"""The application behind a real uvicorn: in a thread of the test, or as a process that can be killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an application that a thread of this process serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)


@contextmanager
def serving_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """uvicorn as a process of its own, with this process's settings, on a Unix socket."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--uds", str(path), "--log-level", "error"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(START_SECONDS)


def through(path: Path) -> httpx.Client:
    """A client of a server on a Unix socket."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://service", timeout=30)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
