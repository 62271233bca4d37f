"""Hears the doorbell: a Celery worker of one thread, which only rings a bell inside this process.

It has no signal handlers and no say in when the process ends: work goes on without the broker, and a stop is
the process's own affair.
"""

import logging
from threading import Event, Thread

from celery.worker import WorkController, state

from core.doorbell import queue_name
from workers.celery_app import celery_app

AGAIN_SECONDS = 5.0
STOP_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Ear:
    """Listens on a thread of its own until it is closed, also through the broker's absences."""

    def __init__(self, worker_id: str, slot: str) -> None:
        self._name, self._queue = f"{worker_id}@worker", queue_name(slot)
        self._closed = Event()
        self._thread = Thread(target=self._listen, name="ear", daemon=True)

    def open(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """End; one that waits for an absent broker is left behind, for the process's end to take away."""
        self._closed.set()
        state.should_stop = 0
        self._thread.join(STOP_SECONDS)

    def _listen(self) -> None:
        celery_app.finalize()
        while not self._closed.is_set():
            worker = WorkController(
                app=celery_app,
                hostname=self._name,
                pool="threads",
                concurrency=1,
                queues=[self._queue],
                loglevel="WARNING",
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
            )
            worker.start()  # Returns when it is told to stop, or at a fault that it has logged.
            self._closed.wait(AGAIN_SECONDS)
