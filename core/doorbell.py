"""The only sender of Celery messages: a ring means "look"."""

import logging
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from core.settings import settings

RING_EXPIRES_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 0.5
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
    """Tell a free worker of each slot class to look; one message a slot class, however often it is named.

    Raises nothing where Redis is away: workers look by themselves, and recovery rings again.
    """
    asked = dict.fromkeys(slots)
    if not asked:
        return
    from kombu.exceptions import OperationalError

    for slot in asked:
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
