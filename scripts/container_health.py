"""A container's health check: `container_health.py api`, or `worker` for workers and samplers."""

import http.client
import socket
import sys

_PORT = 8000
_SECONDS = 4.0


def api_answers() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=_SECONDS)
    connection.request("GET", "/healthz")
    return connection.getresponse().status == http.client.OK


def worker_is_heard_of() -> bool:
    """Whether this container's process has lately written its sign of life to the database."""
    # The API's check needs none of this, and runs every few seconds.
    from core.database import open_session
    from core.heartbeats import live_workers

    with open_session() as session:
        return any(worker.host == socket.gethostname() for worker in live_workers(session))


if __name__ == "__main__":
    healthy = {"api": api_answers, "worker": worker_is_heard_of}[sys.argv[1]]
    sys.exit(0 if healthy() else 1)
