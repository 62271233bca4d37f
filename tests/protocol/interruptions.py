"""Ways to interrupt the code under test between two statements, or at a COMMIT: for faults and for races."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, local
from time import sleep
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

Action = Callable[[Connection, bool], None]
"""What happens at a point, given the connection and whether the point is a COMMIT."""

POLL_SECONDS = 0.001
LONGEST_POLL_SECONDS = 0.016
PATIENCE_SECONDS = 20


class Interruption:
    """One action before the `at`-th point (from 1): the statements and COMMITs of a thread, in order."""

    def __init__(self, at: int, action: Action) -> None:
        self._at, self._action, self._seen, self.fired = at, action, 0, False

    def pass_point(self, connection: Connection, commit: bool) -> None:
        """Called before each statement and COMMIT of the thread."""
        self._seen += 1
        if self._seen == self._at:
            self.fired = True
            self._action(connection, commit)


_current = local()


def watch(engine: Engine) -> None:
    """Have every statement and COMMIT of an engine pass the interruption of its thread."""

    def before_statement(connection: Connection, *_: Any) -> None:
        _pass(connection, commit=False)

    def before_commit(connection: Connection) -> None:
        _pass(connection, commit=True)

    event.listen(engine, "before_cursor_execute", before_statement)
    event.listen(engine, "commit", before_commit)


def _pass(connection: Connection, *, commit: bool) -> None:
    interruption: Interruption | None = getattr(_current, "interruption", None)
    if interruption is not None:
        interruption.pass_point(connection, commit)


@contextmanager
def interrupted(interruption: Interruption | None) -> Iterator[None]:
    """The block, with an interruption in this thread."""
    _current.interruption = interruption
    try:
        yield
    finally:
        _current.interruption = None


class Faults:
    """What may happen to a connection; `admin` is one to the same server that nothing happens to."""

    def __init__(self, admin: "psycopg.Connection[Any]") -> None:
        self._admin = admin

    def lose_connection(self, connection: Connection, commit: bool) -> None:
        """The server ends the session: what was not committed never was."""
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        self._admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        # The server itself would wait in steps of 100 ms.
        while self._admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
            sleep(POLL_SECONDS)

    def lose_answer(self, connection: Connection, commit: bool) -> None:
        """The server commits and the answer is lost; at a statement, the connection is lost."""
        if commit:
            connection.connection.dbapi_connection.commit()  # type: ignore[union-attr]
            connection.invalidate()
            raise OperationalError("COMMIT", None, psycopg.OperationalError("the connection was lost"))
        self.lose_connection(connection, commit)

    def overlap(self, first: Callable[[], None], second: Callable[[], None], at: int) -> bool:
        """Stop the first before its `at`-th point; do the second until it ends or waits; let the first go on.

        Returns whether the first has so many points; raises what either of them raised.
        """
        reached, go_on, errors = Event(), Event(), []

        def stop(_: Connection, __: bool) -> None:
            reached.set()
            assert go_on.wait(PATIENCE_SECONDS)

        def run(work: Callable[[], None], interruption: Interruption | None, ended: Event) -> None:
            try:
                with interrupted(interruption):
                    work()
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        ended, interruption = Event(), Interruption(at, stop)
        threads = [Thread(target=run, args=(first, interruption, reached))]
        threads[0].start()
        assert reached.wait(PATIENCE_SECONDS)
        threads.append(Thread(target=run, args=(second, None, ended)))
        threads[1].start()
        pause = POLL_SECONDS
        while not ended.wait(pause) and not self._somebody_waits():
            pause = min(2 * pause, LONGEST_POLL_SECONDS)
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "two operations wait for each other"
        if errors:
            raise errors[0]
        return interruption.fired

    def _somebody_waits(self) -> bool:
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return self._admin.execute(waiting).fetchone() is not None
