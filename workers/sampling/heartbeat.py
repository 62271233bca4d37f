"""Signs of life of a sampler: keys in Redis, a row in the database. Torch-free."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from core import heartbeats
from core.database import open_transaction
from workers.sampling.mailbox import Mailbox

BEAT_SECONDS = 2.0
SLOT = "sampler"

logger = logging.getLogger(__name__)


class Heartbeat:
    """Beats on threads of its own while it is entered: Redis and the database apart, as one may hang."""

    def __init__(self, mailbox: Mailbox, worker_id: str) -> None:
        self._mailbox, self._worker_id = mailbox, worker_id
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(beat,), name=beat.__name__, daemon=True)
            for beat in (self._beat_redis, self._beat_database)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=BEAT_SECONDS)
        try:
            self._mailbox.withdraw()
            with open_transaction() as tx:
                heartbeats.sign_off(tx, self._worker_id)
        except (RedisError, SQLAlchemyError, OSError) as failure:
            logger.warning("no sign-off: %s", type(failure).__name__)

    def _repeat(self, beat: Callable[[], None]) -> None:
        while not self._ended.is_set():
            try:
                beat()
            except (RedisError, SQLAlchemyError, OSError) as error:
                logger.warning("no sign of life: %s", type(error).__name__)
            self._ended.wait(BEAT_SECONDS)

    def _beat_redis(self) -> None:
        self._mailbox.announce()

    def _beat_database(self) -> None:
        with open_transaction() as tx:
            heartbeats.beat(tx, self._worker_id, SLOT, concurrency=1)
