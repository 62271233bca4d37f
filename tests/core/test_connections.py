import gc
import warnings

import pytest
from sqlalchemy import Connection, text

from core.database import dispose, engine, open_session


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
