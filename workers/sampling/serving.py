"""The sampler's loop: take what waits, answer it group by group. Torch is imported once it is announced."""

import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redis import RedisError, ResponseError

from core.settings import settings
from core.storage import storage
from workers.sampling.grouping import grouped
from workers.sampling.mailbox import Mail, Mailbox
from workers.scratch import own_folder

if TYPE_CHECKING:
    from workers.sampling.engine import Engine

WAIT_SECONDS = 1.0
TAKE_OVER_SECONDS = 2.0
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.2, 5.0

logger = logging.getLogger(__name__)


def serve(mailbox: Mailbox, stop: threading.Event) -> None:
    """Answer requests until `stop` is set. Outlasts Redis being away, or coming back empty."""
    scratch = settings().scratch or Path(tempfile.gettempdir())
    with own_folder(scratch, "mpo-sampler-") as copies:
        _serve(_load_engine(copies), mailbox, stop)


def _serve(engine: "Engine", mailbox: Mailbox, stop: threading.Event) -> None:
    backoff, next_take_over = FIRST_BACKOFF_SECONDS, 0.0
    while not stop.is_set():
        try:
            mails: list[Mail] = []
            if time.monotonic() >= next_take_over:
                mails = mailbox.take_over()
                next_take_over = time.monotonic() + TAKE_OVER_SECONDS
            mails += mailbox.receive(0.001 if mails else WAIT_SECONDS)
            for group in grouped(mails):
                _answer(engine, mailbox, group, stop)
            backoff = FIRST_BACKOFF_SECONDS
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error).lower():
                raise
            mailbox.open()
        except (RedisError, OSError) as error:
            logger.warning("Redis: %s", type(error).__name__)
            stop.wait(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)


def _answer(engine: "Engine", mailbox: Mailbox, group: list[Mail], stop: threading.Event) -> None:
    def wanted(number: int) -> bool:
        return not stop.is_set() and time.time() < group[number].envelope.deadline

    for mail, reply in zip(group, engine.answer([m.envelope.request for m in group], wanted), strict=True):
        if reply is not None:
            mailbox.answer(mail, reply)
        elif not stop.is_set():
            mailbox.drop(mail)


def _load_engine(copies: Path) -> "Engine":
    """Import the torch side: seconds, which a request that is already here waits for."""
    import torch

    from workers.sampling.engine import Engine
    from workers.sampling.model_cache import ModelCache

    if settings().torch_threads:
        torch.set_num_threads(settings().torch_threads)
    return Engine(ModelCache(storage(), settings().sampler_memory_bytes, copies))
