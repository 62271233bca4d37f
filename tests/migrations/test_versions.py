"""The migrations lead to the tables of the code, one step down and up again, and depend on none of them."""

import ast
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from core.database import dispose, engine
from core.migrate import alembic_config

VERSIONS = Path(__file__).resolve().parents[2] / "migrations" / "versions"


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1


@pytest.mark.usefixtures("settings_env")
def test_the_migrated_database_has_the_tables_of_the_code() -> None:
    # Raises where autogenerate would still have something to do.
    command.check(alembic_config())


@pytest.mark.usefixtures("settings_env")
def test_a_step_down_and_up_again_leaves_the_same_schema() -> None:
    before = _schema()
    command.downgrade(alembic_config(), "-1")
    assert _schema() != before
    command.upgrade(alembic_config(), "head")
    assert _schema() == before


@pytest.mark.parametrize("version", sorted(VERSIONS.glob("0*.py")), ids=lambda path: path.stem)
def test_a_migration_does_not_depend_on_tables_that_will_change(version: Path) -> None:
    tree = ast.parse(version.read_text())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not [name for name in imported if name and name.split(".")[0] in ("core", "app", "workers", "mpo")]


def _schema() -> dict[str, list[str]]:
    """Names of columns and indexes by table, and of triggers."""
    dispose()
    with engine().connect() as connection:
        found = inspect(connection)
        names = {
            table: sorted(str(p["name"]) for p in (*found.get_columns(table), *found.get_indexes(table)))
            for table in found.get_table_names()
        }
        triggers = connection.execute(text("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"))
        return {**names, "triggers": sorted(triggers.scalars())}
