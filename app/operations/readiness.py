"""What the service needs, each part checked by itself and named."""

import asyncio
from collections.abc import Callable
from functools import cache, partial

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.operations.questions import NoAnswer, Question
from app.operations.schemas import Check, Readiness
from core.database import open_session
from core.heartbeats import live_workers
from core.sampling import ALIVE
from core.settings import settings
from core.storage import storage

KEPT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
"""Within the patience of usual probes."""
REDIS_TIMEOUT_SECONDS = 2.0


async def read_readiness() -> Readiness:
    """Every check's answer, or that it has none: within `ANSWER_SECONDS`, whatever hangs.

    Kept for a moment: probes are open to anyone, and each costs a write to the store.
    """
    checks = await asyncio.gather(*(_ask(question) for question in _QUESTIONS.values()))
    named = dict(zip(_QUESTIONS, checks, strict=True))
    return Readiness(ready=all(check.ok for check in checks), checks=named)


async def _ask(question: Question[Check]) -> Check:
    try:
        return await question.answer(within_seconds=ANSWER_SECONDS, kept_seconds=KEPT_SECONDS)
    except NoAnswer as none:
        return Check(ok=False, message=str(none))


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


def redis_client() -> Redis:
    """A client that gives up after `REDIS_TIMEOUT_SECONDS`."""
    return _client(settings().redis_url.get_secret_value())


def _redis() -> str:
    redis_client().ping()
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
    if not redis_client().exists(ALIVE):
        raise _NotReady("no sampler has been heard of lately")
    return "alive"


_PARTS: dict[str, Callable[[], str]] = {
    "postgres": _postgres,
    "redis": _redis,
    "store": _store,
    "migrations": _migrations,
    "workers.cpu": partial(_workers, "cpu"),
    "workers.gpu": partial(_workers, "gpu"),
    "sampler": _sampler,
}
_QUESTIONS = {name: Question(partial(_check, part)) for name, part in _PARTS.items()}
