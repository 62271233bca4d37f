"""`python -m core.migrate`: bring the database to the newest revision."""

from importlib.resources import files

from alembic import command
from alembic.config import Config


def alembic_config() -> Config:
    """Alembic's configuration; the database's URL comes from the settings."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    return config


if __name__ == "__main__":
    command.upgrade(alembic_config(), "head")
