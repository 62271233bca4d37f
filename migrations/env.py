"""Alembic's environment: one migration at a time (advisory lock), and none that waits for a lock for ever."""

from alembic import context
from sqlalchemy import create_engine, text

from core.settings import settings
from core.tables import Base

ADVISORY_LOCK = 4_403_191_944
LOCK_TIMEOUT_MILLISECONDS = 10_000
STATEMENT_TIMEOUT_MILLISECONDS = 600_000


def run() -> None:
    """Run the migrations that are asked for, on the database of the settings."""
    engine = create_engine(settings().database_url.get_secret_value())
    with engine.connect() as connection:
        connection.execute(text(f"SET statement_timeout = {STATEMENT_TIMEOUT_MILLISECONDS}"))
        connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        connection.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MILLISECONDS}"))
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=False)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    engine.dispose()


run()
