"""`python -m workers.sampler`: a process that holds models and answers requests to sample and score."""

import logging
import os
import sys
import threading

from redis import Redis, RedisError

from core import logs
from core.ids import new_id
from core.settings import settings
from workers.sampling.heartbeat import Heartbeat
from workers.sampling.mailbox import Mailbox
from workers.sampling.serving import serve
from workers.stop_signal import StopSignal

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""Longer than the sampler ever blocks for a new request."""
LET_GO_SECONDS = 3.0

logger = logging.getLogger(__name__)
_failed = threading.Event()


def main() -> int:
    """Serve until SIGTERM or SIGINT; what is unanswered then is left to the next sampler."""
    asked, stop = StopSignal(), threading.Event()
    logs.configure("sampler")
    worker_id = new_id("worker")
    redis = Redis.from_url(
        settings().redis_url.get_secret_value(),
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
    )
    mailbox = Mailbox(redis, worker_id)
    with Heartbeat(mailbox, worker_id):
        thread = threading.Thread(target=_serve, args=(mailbox, stop, asked), name="serve", daemon=True)
        thread.start()
        asked.wait()
        stop.set()
        logger.info("sampler %s was asked to stop", worker_id)
        # It lets go of what it generates with the next token; an import or a model that loads takes longer.
        thread.join(LET_GO_SECONDS)
    if thread.is_alive():
        # Signed off already. An interpreter that ends under an import may crash; nothing is left to be done.
        logging.shutdown()
        os._exit(0)
    redis.close()
    return 1 if _failed.is_set() else 0


def _serve(mailbox: Mailbox, stop: threading.Event, asked: StopSignal) -> None:
    try:
        _open(mailbox, stop)
        serve(mailbox, stop)
    except Exception:  # a border: the process ends with it, to be started again
        logger.exception("the sampler fails")
        _failed.set()
    finally:
        asked.ask()


def _open(mailbox: Mailbox, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            mailbox.open()
        except (RedisError, OSError) as error:
            logger.warning("Redis: %s", type(error).__name__)
            stop.wait(1.0)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
