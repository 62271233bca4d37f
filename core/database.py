"""The engine; `open_transaction`, which commits and then rings; read-only sessions."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event, insert, make_url
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from core.connections import Door
from core.doorbell import ring
from core.settings import settings
from core.tables import Event

POOL_TIMEOUT_SECONDS = 3


_EVENTS = insert(Event.__table__)  # type: ignore[arg-type]


@dataclass
class Transaction:
    """A session that will be committed by whoever opened it, and the slots to ring once it is.

    Whatever takes one writes; only `open_transaction` commits.
    """

    session: Session
    to_ring: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `Event`, inserted together just before the commit."""
    taken_away: list[str] = field(default_factory=list)
    """Runs that were cancelled or paused: after the commit, whoever waits for one has to be told."""


AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""The database cannot be reached, or has not answered: the same may be asked again later."""


@cache
def engine() -> Engine:
    """This process's engine. Call `engine.cache_clear` after a fork: connections cannot be shared."""
    url = make_url(settings().database_url.get_secret_value())
    made = create_engine(
        url,
        creator=Door(url).connect,
        # Opened as they are needed, and kept: an overflow would be closed after each use, and opening another
        # costs the server more than a submission does.
        pool_size=30,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        # An error's text is logged; what was to be written may be a prompt.
        hide_parameters=True,
    )
    event.listens_for(made, "checkout")(_refuse_broken)
    return made


def _refuse_broken(connection: psycopg.Connection, _record: object, _fairy: object) -> None:
    """Raises DisconnectionError, upon which the pool connects anew, where the server has hung up.

    A server that ends closes its sockets, which the kernel tells at once; asking the server would be a round
    trip more for every transaction.
    """
    if not connection.closed:
        idle = select.poll()
        idle.register(connection.fileno(), select.POLLIN)
        if not idle.poll(0):
            return
    raise DisconnectionError("the server has hung up")


@cache
def _sessions() -> sessionmaker[Session]:
    return sessionmaker(engine(), expire_on_commit=False)


@cache
def _readers() -> sessionmaker[Session]:
    # Without BEGIN and ROLLBACK a read takes a third of the round trips.
    return sessionmaker(engine().execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False)


def dispose() -> None:
    """Close every connection and forget the engine, so that the next use reads the settings anew."""
    if engine.cache_info().currsize:
        engine().dispose()
    _sessions.cache_clear()
    _readers.cache_clear()
    engine.cache_clear()


@contextmanager
def open_transaction() -> Iterator[Transaction]:
    """One transaction: committed at the end, rolled back on an error, and only then the doorbell.

    Never hold it open over training, sampling or an upload.
    """
    with _sessions()() as session:
        tx = Transaction(session)
        yield tx
        if tx.events:
            session.flush()  # the rows of their jobs first
            session.connection().execute(_EVENTS, tx.events)
        session.commit()
    ring(tx.to_ring)


@contextmanager
def open_session() -> Iterator[Session]:
    """A session that only reads: each statement by itself sees what it would see in a transaction too."""
    with _readers()() as session:
        yield session
