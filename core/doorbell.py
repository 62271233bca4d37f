"""The only sender of Celery messages: a ring means "look"."""

import logging
import os
import time
from collections.abc import Iterable
from functools import cache
from threading import Condition, Thread
from typing import TYPE_CHECKING

from core.settings import settings

RING_EXPIRES_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 0.5
QUIET_SECONDS = 0.05
"""A message and the look that it causes take the time of a fifth of a submission: under a flood, most of what
workers did was to look."""
LOOK = "workers.tasks.look"

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)


@cache
def _sender() -> "Celery":
    # Late: Celery takes a quarter of a second to import, which a server that starts need not wait for.
    from celery import Celery

    sender = Celery("mpo-doorbell", broker=settings().broker_url)
    sender.conf.update(
        task_ignore_result=True,
        broker_connection_retry=False,
        broker_connection_timeout=CONNECT_TIMEOUT_SECONDS,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "socket_timeout": CONNECT_TIMEOUT_SECONDS,
            "max_retries": 0,
        },
    )
    return sender


def queue_name(slot: str) -> str:
    """Celery's queue of a slot class."""
    return f"mpo.{slot}"


def ring(slots: Iterable[str]) -> None:
    """Tell a free worker of each slot class to look; soon, by another thread: nobody waits for Redis.

    Rings for one slot class within `QUIET_SECONDS` become one message: a worker that looks finds all there
    is. Where Redis is away, or this process dies first, workers look by themselves, and recovery rings again.
    """
    asked = set(slots)
    if asked:
        _bell().ring(asked)


class _Bell:
    """Rings at once after a silence, and then at most once in `QUIET_SECONDS` a slot class."""

    def __init__(self) -> None:
        self._asked: set[str] = set()
        self._changed = Condition()
        self._thread: Thread | None = None

    def ring(self, slots: set[str]) -> None:
        with self._changed:
            self._asked |= slots
            if self._thread is None:
                self._thread = Thread(target=self._work, name="doorbell", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked)
                asked, self._asked = self._asked, set()
            for slot in sorted(asked):
                _send(slot)
            # A pace, not a wait for something: what is asked for meanwhile goes out together afterwards.
            time.sleep(QUIET_SECONDS)


@cache
def _bell() -> _Bell:
    # A thread does not live through a fork: the child has a bell of its own.
    os.register_at_fork(after_in_child=_bell.cache_clear)
    return _Bell()


def _send(slot: str) -> None:
    from kombu.exceptions import OperationalError

    try:
        _sender().send_task(
            LOOK,
            args=[slot],
            queue=queue_name(slot),
            expires=RING_EXPIRES_SECONDS,
            retry=False,
        )
    except (OperationalError, OSError) as error:
        logger.warning("no ring for slot %s: %s", slot, error)
    except Exception:  # a border: the bell goes on ringing
        logger.exception("no ring for slot %s", slot)
