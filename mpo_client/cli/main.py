"""The command `mpo`: the client's own groups, and those that other installed packages offer."""

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from mpo_client.cli import (
    comparing,
    datasets,
    evaluations,
    exit_codes,
    gaps,
    jobs,
    keys,
    models,
    runs,
    sampling,
    service,
    submitting,
    watching,
)
from mpo_client.cli.connection import Source
from mpo_client.cli.error_lines import told
from mpo_client.cli.session import ConfigOption, KeyFileOption, KeyOption, StateOption, UrlOption

COMMANDS = "mpo.commands"


class Root(TyperGroup):
    """Tells an error in one line and ends with its code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            if not standalone_mode:
                raise
            sys.exit(exit_codes.INTERRUPTED)
        except Exception as error:
            if not standalone_mode:
                raise
            sys.exit(_told(error))
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else exit_codes.OK)


def build_app() -> typer.Typer:
    """Every further group registers itself: a function `register(app)` behind an entry point."""
    app = typer.Typer(
        name="mpo",
        cls=Root,
        help="Train language models on human preferences by Mixed Preference Optimization.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,  # they would show keys
    )

    @app.callback()
    def _root(
        context: typer.Context,
        url: UrlOption = None,
        key: KeyOption = None,
        key_file: KeyFileOption = None,
        state: StateOption = None,
        config: ConfigOption = None,
    ) -> None:
        context.obj = Source(url=url, key=key, key_file=key_file, state=state, config=config)

    for name, group in _groups().items():
        app.add_typer(group, name=name)
    for register in (sampling.register, comparing.register, service.register):
        register(app)
    for entry in sorted(entry_points(group=COMMANDS), key=lambda each: each.name):
        _register(entry, app)
    return app


def main() -> None:
    build_app()(prog_name="mpo")


def _groups() -> dict[str, typer.Typer]:
    for register in (submitting.register, watching.register):
        register(jobs.group)
    return {
        "datasets": datasets.group,
        "jobs": jobs.group,
        "gaps": gaps.group,
        "models": models.group,
        "evaluations": evaluations.group,
        "runs": runs.group,
        "keys": keys.group,
    }


def _told(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]  # click's own way to print the help
        return exit_codes.USAGE
    found = told(error)
    if found is None:
        raise error
    typer.echo(f"error: {found.line}", err=True)
    return found.code


def _register(entry: EntryPoint, app: typer.Typer) -> None:
    try:
        register = entry.load()
    except ImportError as error:
        # One broken group is no reason to take the others away.
        typer.echo(f"commands of {entry.value} are not available: {error}", err=True)
    else:
        register(app)
