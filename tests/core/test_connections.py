import gc
import time
import warnings

import pytest
from sqlalchemy import Connection, text

from core import connections
from core.database import AWAY, dispose, engine, open_session, open_transaction


def left_over(pid: int) -> int:
    """How many connections of that number the server still holds: 1 or 0."""
    counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid = :pid"
    with open_session() as session:
        return int(session.scalar(text(counted), {"pid": pid}))


@pytest.mark.usefixtures("settings_env")
def test_a_connection_that_was_in_use_when_its_pool_was_let_go_is_closed_without_a_word() -> None:
    connection: Connection | None = engine().connect()
    assert connection is not None
    pid = int(connection.scalar(text("SELECT pg_backend_pid()")))
    dispose()
    assert left_over(pid) == 1, "it is in use: nobody closes it"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        connection.close()
        connection = None
        gc.collect()
    assert not said
    assert any(not left_over(pid) for _ in range(1000)), "the server still holds it"


PATIENCE_SECONDS = 30.0
LOCK = text("SELECT pg_try_advisory_xact_lock(11)")


def takes_the_lock() -> bool:
    """In a transaction that ends at once."""
    with open_transaction() as tx:
        return bool(tx.session.scalar(LOCK))


@pytest.mark.usefixtures("settings_env")
def test_what_is_held_by_a_process_that_froze_in_a_transaction_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "IDLE_IN_TRANSACTION_MILLISECONDS", 400)
    frozen = open_transaction()
    session = frozen.__enter__().session
    assert session.scalar(LOCK)
    pid = int(session.scalar(text("SELECT pg_backend_pid()")) or 0)
    assert not takes_the_lock()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left_over(pid):
        assert time.monotonic() < deadline, "the server waits for it"
    assert takes_the_lock()
    with pytest.raises(AWAY) as told:
        session.execute(text("SELECT 'it goes on'"))
    assert frozen.__exit__(told.type, told.value, told.tb) is not True
    assert takes_the_lock(), "another connection takes the place of the lost one"
