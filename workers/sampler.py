"""`python -m workers.sampler`: a process that holds models and answers requests to sample and score."""

import logging
import signal
import sys
import threading
from types import FrameType

from redis import Redis, RedisError

from core.ids import new_id
from core.settings import settings
from workers.sampling.heartbeat import Heartbeat
from workers.sampling.mailbox import Mailbox
from workers.sampling.serving import serve

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""Longer than the sampler ever blocks for a new request."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; what is unanswered then is left to the next sampler."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    worker_id = new_id("worker")
    redis = Redis.from_url(
        settings().redis_url.get_secret_value(),
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
    )
    mailbox = Mailbox(redis, worker_id)
    _open(mailbox, stop)
    with Heartbeat(mailbox, worker_id, stop):
        serve(mailbox, stop)
    redis.close()
    return 0


def _open(mailbox: Mailbox, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            mailbox.open()
        except (RedisError, OSError) as error:
            logging.getLogger(__name__).warning("Redis: %s", type(error).__name__)
            stop.wait(1.0)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
