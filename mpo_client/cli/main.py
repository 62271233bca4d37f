"""The command `mpo`: gathers the command groups that the installed packages offer."""

from importlib.metadata import EntryPoint, entry_points

import typer

COMMANDS = "mpo.commands"


def build_app() -> typer.Typer:
    """Every group registers itself: a function `register(app)` behind an entry point."""
    app = typer.Typer(
        name="mpo",
        help="Train language models on human preferences by Mixed Preference Optimization.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,  # they would show keys
    )

    @app.callback()
    def _group() -> None:
        """Keeps `mpo NAME` the way to call a command while there is only one."""

    for entry in sorted(entry_points(group=COMMANDS), key=lambda each: each.name):
        _register(entry, app)
    return app


def main() -> None:
    build_app()()


def _register(entry: EntryPoint, app: typer.Typer) -> None:
    try:
        register = entry.load()
    except ImportError as error:
        # One broken group is no reason to take the others away.
        typer.echo(f"commands of {entry.value} are not available: {error}", err=True)
    else:
        register(app)
