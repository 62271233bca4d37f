"""The sampler's loop: take what waits, go on with what is under way. Torch comes after the first beat."""

import logging
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redis import RedisError, ResponseError

from core.settings import settings
from core.storage import storage
from workers.device_use import is_in_use, lock_file
from workers.sampling.mailbox import Mail, Mailbox
from workers.sampling.pace import Pace
from workers.scratch import own_folder

if TYPE_CHECKING:
    from workers.sampling.engine import Engine

WAIT_SECONDS = 1.0
TAKE_OVER_SECONDS = 0.5
"""Whoever waits for a dead sampler's answer gives up after two looks a second apart."""
LOOK_SECONDS = 0.02
"""How often it looks for new requests while it answers others."""
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.2, 5.0

logger = logging.getLogger(__name__)


def serve(mailbox: Mailbox, stop: threading.Event) -> None:
    """Answer requests until `stop` is set. Outlasts Redis being away, or coming back empty."""
    with own_folder(settings().scratch_or_temporary, "mpo-sampler-") as copies:
        engine = _load_engine(copies, mailbox)
        pace = Pace(settings().sampler_share, partial(is_in_use, lock_file()), stop)
        try:
            _serve(engine, mailbox, stop, pace)
        finally:
            engine.close()


def _serve(engine: "Engine", mailbox: Mailbox, stop: threading.Event, pace: Pace) -> None:
    backoff, next_take_over, next_look = FIRST_BACKOFF_SECONDS, 0.0, 0.0
    while not stop.is_set():
        try:
            now = time.monotonic()
            if now >= next_take_over:
                next_take_over = now + TAKE_OVER_SECONDS
                _take(engine, mailbox.take_over())
            # Between two tokens nothing is waited for, nor does each token cost a look.
            if engine.is_idle or engine.waits or now >= next_look:
                wait = WAIT_SECONDS if engine.is_idle else LOOK_SECONDS if engine.waits else 0.0
                _take(engine, mailbox.receive(wait))
                next_look = time.monotonic() + LOOK_SECONDS
            pace.take(engine.turn)
            backoff = FIRST_BACKOFF_SECONDS
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error).lower():
                raise
            mailbox.open()
        except (RedisError, OSError) as error:
            logger.warning("Redis: %s", type(error).__name__)
            stop.wait(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)


def _take(engine: "Engine", mails: list[Mail]) -> None:
    for mail in mails:
        engine.take(mail)


def _load_engine(copies: Path, mailbox: Mailbox) -> "Engine":
    """Import the torch side: seconds, which a request that is already here waits for."""
    import torch

    from workers.sampling.engine import Engine
    from workers.sampling.model_cache import ModelCache

    if settings().torch_threads:
        torch.set_num_threads(settings().torch_threads)
    pinned = settings().sampler_pinned_models
    return Engine(ModelCache(storage(), settings().sampler_memory_bytes, copies, pinned), mailbox)
