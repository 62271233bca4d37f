"""Connections to Postgres that give up on a server which does not answer, and a door that then stays shut.

A server that refuses is noticed at once. One that is frozen, or behind a network that swallows packets, would
hold each thread that asks for as long as TCP hopes: a few requests would stop the service. The other way
round, the server gives up on a process that is frozen within a transaction, which would keep its locks.
"""

import time
from threading import Lock
from typing import Any

from psycopg import Connection, OperationalError
from psycopg.abc import RV, PQGen
from psycopg.errors import IdleInTransactionSessionTimeout
from psycopg.pq import TransactionStatus
from sqlalchemy import URL

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MILLISECONDS = 15_000
LOCK_TIMEOUT_MILLISECONDS = 10_000
IDLE_IN_TRANSACTION_MILLISECONDS = 10_000
"""Less than a lease: what a frozen worker held is free when its runs are given to others."""
IDLE_ANSWER_SECONDS = 3.0
"""The pool's question whether a connection still lives, and BEGIN, take no time where there is a server."""
READ_SECONDS = 6.0
"""A read by itself: what takes longer is no answer to a request."""
ANSWER_SECONDS = 18.0
"""Longer than the server itself allows a statement: silence beyond it is not work."""
INTERVAL_SECONDS = 0.1


class BoundedConnection(Connection[Any]):
    """Waits for an answer for a bounded time; then it is closed, and its door shut."""

    door: "Door | None" = None

    def __del__(self, *_: object) -> None:
        """Closed without a word: one that was in use when its pool was let go comes back to nobody."""
        if hasattr(self, "pgconn"):
            self.pgconn.finish()

    def wait(self, gen: PQGen[RV], interval: float = INTERVAL_SECONDS, timeout: float | None = None) -> RV:
        """The answer; raises OperationalError where none comes."""
        is_idle = self.pgconn.transaction_status == TransactionStatus.IDLE
        idle_seconds = READ_SECONDS if self.autocommit else IDLE_ANSWER_SECONDS
        bound = timeout or (idle_seconds if is_idle else ANSWER_SECONDS)
        deadline = time.monotonic() + bound
        try:
            return super().wait(gen, interval, bound)
        except IdleInTransactionSessionTimeout as error:
            self.close()
            raise OperationalError(str(error)) from None
        except OperationalError:
            if time.monotonic() < deadline:
                raise  # the server's own
            self.close()
            if self.door is not None:
                self.door.shut()
            raise OperationalError(f"the server has not answered within {bound:g} s") from None


class Door:
    """Opens connections. While the server does not answer, one caller at a time tries; others are refused."""

    def __init__(self, url: URL) -> None:
        arguments, self._parameters = url.get_dialect()().create_connect_args(url)
        assert not arguments, "psycopg takes all of a URL by name"
        self._is_open, self._trying = True, Lock()

    def shut(self) -> None:
        """The server does not answer."""
        self._is_open = False

    def connect(self) -> BoundedConnection:
        """A new connection; raises OperationalError."""
        if self._is_open:
            return self._connect()
        if not self._trying.acquire(blocking=False):
            raise OperationalError("the server did not answer just now")
        try:
            connection = self._connect()
        finally:
            self._trying.release()
        self._is_open = True
        return connection

    def _connect(self) -> BoundedConnection:
        try:
            connection = BoundedConnection.connect(
                **self._parameters,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                options=f"-c statement_timeout={STATEMENT_TIMEOUT_MILLISECONDS} "
                f"-c lock_timeout={LOCK_TIMEOUT_MILLISECONDS} -c timezone=utc "
                f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MILLISECONDS}",
            )
        except OperationalError:
            self.shut()
            raise
        connection.door = self
        return connection
