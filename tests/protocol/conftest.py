"""A database of which every statement can be interrupted, and a connection that nothing happens to."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from core import database
from tests.protocol.interruptions import watch
from tests.protocol.world import CLOCK
from workers import recovery


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests have counted, whichever process ran them."""
    counted: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        counted.update({name: value for name, value in report.user_properties if isinstance(value, int)})
    for name, number in counted.items():
        terminalreporter.line(f"the protocol: {number} {name}")


@pytest.fixture
def admin(settings_env: pytest.MonkeyPatch, database_url: str) -> Iterator["psycopg.Connection[Any]"]:
    """Every ring of the doorbell is lost: a delay and nothing else, so the sequences do without."""
    from app.jobs import leaves

    settings_env.setattr(database, "ring", lambda _: None)
    # Rows lie in no store here; what is read of them is whether they hold messages.
    settings_env.setattr(leaves, "_has_messages", lambda _: False)
    settings_env.setattr(recovery, "time", CLOCK)
    watch(database.engine())
    url = make_url(database_url)
    with psycopg.connect(
        host=url.query.get("host") or url.host, user=url.username, dbname=url.database, autocommit=True
    ) as connection:
        yield connection
