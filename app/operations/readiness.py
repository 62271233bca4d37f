"""What the service needs, each part checked by itself and named."""

import threading
import time
from collections.abc import Callable
from functools import cache

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.operations.schemas import Check, Readiness
from core.database import open_session
from core.heartbeats import live_workers
from core.sampling import ALIVE
from core.settings import settings
from core.storage import storage

KEPT_SECONDS = 1.0
REDIS_TIMEOUT_SECONDS = 2.0


class _Kept:
    """The last answer: probes are open to anyone, and each costs a write to the store."""

    def __init__(self) -> None:
        self._lock, self._at = threading.Lock(), float("-inf")
        self._readiness = Readiness(ready=False, checks={})

    def get(self) -> Readiness:
        """An answer of the last second, or a new one."""
        with self._lock:
            if time.monotonic() - self._at > KEPT_SECONDS:
                self._readiness, self._at = _check_all(), time.monotonic()
            return self._readiness


read_readiness = _Kept().get


def _check_all() -> Readiness:
    checks = {
        "postgres": _check(_postgres),
        "redis": _check(_redis),
        "store": _check(_store),
        "migrations": _check(_migrations),
        "workers.cpu": _check(lambda: _workers("cpu")),
        "workers.gpu": _check(lambda: _workers("gpu")),
        "sampler": _check(_sampler),
    }
    return Readiness(ready=all(check.ok for check in checks.values()), checks=checks)


class _NotReady(Exception):
    """A part is missing; the argument says which."""


def _check(part: Callable[[], str]) -> Check:
    """The class of an error and no more: its text may hold addresses and passwords."""
    try:
        return Check(ok=True, message=part())
    except _NotReady as missing:
        return Check(ok=False, message=str(missing))
    except (SQLAlchemyError, RedisError, OSError) as error:
        return Check(ok=False, message=f"unreachable: {type(error).__name__}")


def _postgres() -> str:
    with open_session() as session:
        session.execute(select(1))
    return "answers"


@cache
def _client(url: str) -> Redis:
    return Redis.from_url(
        url, socket_timeout=REDIS_TIMEOUT_SECONDS, socket_connect_timeout=REDIS_TIMEOUT_SECONDS
    )


def _redis() -> str:
    _client(settings().redis_url.get_secret_value()).ping()
    return "answers"


def _store() -> str:
    storage().check()
    return "can be written"


@cache
def _head() -> str | None:
    from alembic.script import ScriptDirectory

    from core.migrate import alembic_config

    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def _migrations() -> str:
    head = _head()
    with open_session() as session:
        made = session.scalar(select(func.to_regclass("alembic_version")))
        revision = session.scalar(text("SELECT version_num FROM alembic_version")) if made else None
    if revision != head:
        raise _NotReady(f"at {revision or 'none'}, head is {head}: run python -m core.migrate")
    return f"at head {head}"


def _workers(slot: str) -> str:
    with open_session() as session:
        count = sum(worker.slot == slot for worker in live_workers(session))
    if not count:
        raise _NotReady(f"no {slot} worker has been heard of lately")
    return f"{count} alive"


def _sampler() -> str:
    if not _client(settings().redis_url.get_secret_value()).exists(ALIVE):
        raise _NotReady("no sampler has been heard of lately")
    return "alive"
