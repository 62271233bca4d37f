"""Judges for tests: an HTTP server of OpenAI's shape that answers as it is told to."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes]
ANSWERS = re.compile(
    r"\[Answer A\]\n(.*?)\n\[End of answer A\].*\[Answer B\]\n(.*?)\n\[End of answer B\]", re.DOTALL
)


def says(text: str) -> Reply:
    """A verdict in OpenAI's shape."""
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def shown(question: str) -> tuple[str, str]:
    """The two answers of a question, the first place first."""
    found = ANSWERS.search(question)
    assert found is not None, question
    return found.group(1), found.group(2)


@contextmanager
def judging(answer: Callable[[str], Reply], seen: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """The base URL of a judge. seen: is told of each request, `{"path", "headers", "body"}`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if seen is not None:
                seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
            status, content = answer(body["messages"][0]["content"])
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Not on the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
