"""What every command that talks to the service has: its options, a client, a screen."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mpo_client.cli.connection import Source, connect
from mpo_client.cli.screen import Screen
from mpo_client.client import Client

PANEL = "Service"
UrlOption = Annotated[str | None, typer.Option("--url", help="[MPO_URL]", rich_help_panel=PANEL)]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", help="API key [MPO_API_KEY]; others may see it: prefer a file.", rich_help_panel=PANEL
    ),
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--key-file", help="File with the API key.", rich_help_panel=PANEL)
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="State folder of an `mpo up`: its URL and its key.", rich_help_panel=PANEL),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="[MPO_CONFIG, ~/.config/mpo/config.toml]", rich_help_panel=PANEL),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@dataclass(frozen=True)
class Session:
    """A client, and where results go."""

    client: Client
    screen: Screen


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, whose first parameter is its session, the options that all of them have."""
    own = [*inspect.signature(command, eval_str=True).parameters.values()][1:]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        source = Source(**{name: given.pop(name) for name in _SOURCES})
        # What stands before the command's name counts too, but less.
        connection = connect([source, given.pop("context").obj or Source()])
        screen = Screen(as_json=given.pop("json"))
        with Client(connection.url, connection.key) as client:
            command(Session(client, screen), **given)

    parameters = [*(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), context, *_SHARED]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_SOURCES = ("url", "key", "key_file", "state", "config")
_SHARED = (
    _option("json", JsonOption, False),
    _option("url", UrlOption, None),
    _option("key", KeyOption, None),
    _option("key_file", KeyFileOption, None),
    _option("state", StateOption, None),
    _option("config", ConfigOption, None),
)
