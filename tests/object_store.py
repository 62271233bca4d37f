"""A real S3 server from a wheel, in a process of its own; and a door to it that can be slow or broken."""

import contextlib
import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from s3fs import S3FileSystem

from core.storage import Storage

_numbers = itertools.count(1)
_reached: list[str] = []
SERVER = """
import logging, sys
logging.disable()
told, sys.stdout = sys.stdout, sys.stderr
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(port=0)
server.start()
print(server.get_host_and_port()[1], file=told, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Its URL, for as long as it runs."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def s3_environment(url: str) -> dict[str, str]:
    """What tells boto, and so fsspec, where S3 is; a failed call is told at once."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def fresh_bucket() -> str:
    """URL of a prefix in a new bucket, on the server that the environment names."""
    if _reached[-1:] != [endpoint := os.environ["AWS_ENDPOINT_URL"]]:
        # fsspec keeps its instances by their arguments, not by the environment that they were made in.
        S3FileSystem.clear_instance_cache()
        _reached.append(endpoint)
    name = f"mpo-{next(_numbers)}"
    url = f"s3://{name}/store"
    Storage(url).remote[0].mkdir(name)
    return url


class Door(ThreadingHTTPServer):
    """Passes every request on to the server, unless it is told otherwise.

    refuse: answer 503 to writes from now on. wait_seconds: keep the next write waiting this long.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = urlsplit(target).netloc
        self.refuse, self.wait_seconds = False, 0.0
        self.writes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def door(target: str) -> Iterator[Door]:
    """A door before a server, open."""
    with Door(target) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield opened
        finally:
            opened.shutdown()
            thread.join()


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Door

    def _pass(self) -> None:
        body = self._read_body()
        if self.command in ("PUT", "POST"):
            self.server.writes += 1
            wait, self.server.wait_seconds = self.server.wait_seconds, 0.0
            time.sleep(wait)
            if self.server.refuse:
                self._answer(503, [], b"<Error><Code>ServiceUnavailable</Code></Error>")
                return
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        dropped = ("transfer-encoding", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self._answer(answer.status, answer.getheaders(), content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815 - http.server's names

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""
