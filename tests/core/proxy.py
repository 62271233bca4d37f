"""A way to Postgres that can be frozen or cut, as a network can."""

import selectors
import socket
import threading
from pathlib import Path

CHUNK_BYTES = 1 << 16


class Proxy:
    """Passes bytes between a TCP port and a Unix socket. `frozen`: takes connections, passes nothing on."""

    def __init__(self, behind: Path) -> None:
        self._behind = str(behind)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._passing = threading.Event()
        self._passing.set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._start(self._accept)

    def freeze(self) -> None:
        """From now on nothing comes through."""
        self._passing.clear()

    def thaw(self) -> None:
        """All that was held back goes on."""
        self._passing.set()

    def close(self) -> None:
        """Cut every connection; new ones are refused."""
        if self._closed:
            return
        self._closed = True
        # A connection of our own wakes the thread that accepts.
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.thaw()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            front, _ = self._listener.accept()
            if self._closed:
                front.close()
                return
            back = socket.socket(socket.AF_UNIX)
            back.connect(self._behind)
            self._start(self._pass, front, back)

    def _pass(self, front: socket.socket, back: socket.socket) -> None:
        with selectors.DefaultSelector() as ready, front, back:
            ready.register(front, selectors.EVENT_READ, back)
            ready.register(back, selectors.EVENT_READ, front)
            while not self._closed:
                for key, _ in ready.select(0.05):
                    self._passing.wait()
                    content = _read(key.fileobj)  # type: ignore[arg-type]
                    if not content:
                        return
                    try:
                        key.data.sendall(content)
                    except OSError:
                        return


def _read(end: socket.socket) -> bytes:
    try:
        return end.recv(CHUNK_BYTES)
    except OSError:
        return b""
