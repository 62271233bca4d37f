"""The engine; `open_transaction`, which commits and then rings; read-only sessions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from core.connections import Door
from core.doorbell import ring
from core.settings import settings

POOL_TIMEOUT_SECONDS = 3


@dataclass
class Transaction:
    """A session that will be committed by whoever opened it, and the slots to ring once it is.

    Whatever takes one writes; only `open_transaction` commits.
    """

    session: Session
    to_ring: list[str] = field(default_factory=list)


@cache
def engine() -> Engine:
    """This process's engine. Call `engine.cache_clear` after a fork: connections cannot be shared."""
    url = make_url(settings().database_url.get_secret_value())
    return create_engine(
        url,
        creator=Door(url).connect,
        pool_size=10,
        max_overflow=20,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_pre_ping=True,
        # An error's text is logged; what was to be written may be a prompt.
        hide_parameters=True,
    )


@cache
def _sessions() -> sessionmaker[Session]:
    return sessionmaker(engine(), expire_on_commit=False)


def dispose() -> None:
    """Close every connection and forget the engine, so that the next use reads the settings anew."""
    if engine.cache_info().currsize:
        engine().dispose()
    _sessions.cache_clear()
    engine.cache_clear()


@contextmanager
def open_transaction() -> Iterator[Transaction]:
    """One transaction: committed at the end, rolled back on an error, and only then the doorbell.

    Never hold it open over training, sampling or an upload.
    """
    with _sessions()() as session:
        tx = Transaction(session)
        yield tx
        session.commit()
    ring(tx.to_ring)


@contextmanager
def open_session() -> Iterator[Session]:
    """A session that only reads."""
    with _sessions()() as session:
        yield session
