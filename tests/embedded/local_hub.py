"""A hub of models on this machine: what `snapshot_download` asks of one, over HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

COMMIT = "c0ffee" + "0" * 34


class Handler(BaseHTTPRequestHandler):
    """Serves the folders OWNER/NAME below a root; `asked` is every path that came."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = urlparse(self.path).path
        self.asked.append(path)
        match path.strip("/").split("/"):
            case ["api", "models", owner, name, "revision", revision]:
                self._info(self.root / owner / name, revision)
            case ["api", "models", owner, name, "tree", _commit]:
                folder = self.root / owner / name
                files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
                self._json([_entry(folder, path) for path in files])
            case [owner, name, "resolve", _commit, *parts]:
                self._file(self.root.joinpath(owner, name, *parts), with_body=with_body)
            case _:
                self._refuse(404, "EntryNotFound")

    def _info(self, folder: Path, revision: str) -> None:
        if not folder.is_dir():
            self._refuse(404, "RepoNotFound")
        elif (folder / ".gated").exists():
            self._refuse(403, "GatedRepo")
        elif revision not in {"main", "v1", COMMIT}:
            self._refuse(404, "RevisionNotFound")
        else:
            self._json({"id": f"{folder.parent.name}/{folder.name}", "sha": COMMIT, "siblings": []})

    def _file(self, path: Path, *, with_body: bool) -> None:
        content = path.read_bytes()
        headers = {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT}
        self._send(200, content if with_body else b"", {**headers, "Content-Length": str(len(content))})

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self._send(200, content, {"Content-Type": "application/json", "Content-Length": str(len(content))})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "Content-Length": "0"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the paths that were asked of it so far."""
    asked: list[str] = []
    handler = type("RootedHandler", (Handler,), {"root": root, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(folder: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _oid(path)}


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
