"""`mpo models`: list, show, register, download, delete."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mpo_client.cli.screen import facts, moment, size, table
from mpo_client.cli.session import Session, connected
from mpo_client.models import Form

group = typer.Typer(help="Base models, and what jobs have trained.", no_args_is_help=True)

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="A base model's name, or job_…:stage")]
FormOption = Annotated[
    Form | None, typer.Option(help="A model with LoRA weights: merged into its base, or the adapter alone.")
]


@group.command("list")
@connected
def list_models(
    session: Session, limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100
) -> None:
    """List models, newest first."""
    found = [*session.client.models.list(limit=limit)]
    if session.screen.as_json:
        return session.screen.document(found)
    rows = [(m.id, m.kind, m.base, moment(m.created)) for m in found]
    return session.screen.show(table(("id", "kind", "base", "created"), rows))


@group.command()
@connected
def show(session: Session, model: ModelId, form: FormOption = None) -> None:
    """Show a model and its files."""
    found = session.client.models.get(model)
    if session.screen.as_json:
        return session.screen.document(found)
    files = session.client.models.files(model, form=form)
    session.screen.show(
        facts(
            [
                ("id", found.id),
                ("kind", found.kind),
                ("base", found.base),
                ("owner", found.owned_by),
                ("created", moment(found.created)),
            ]
        ),
        "",
        table(("file", "size"), [(file.name, size(file.bytes)) for file in files], numbers=("size",)),
    )
    return None


@group.command()
@connected
def register(
    session: Session,
    folder: Annotated[str, typer.Argument(help="A folder on the server, below one of its allowed roots.")],
    name: Annotated[str | None, typer.Option(help="The folder's name where not given.")] = None,
) -> None:
    """Make a folder on the server a base model (admin). Prints its name."""
    made = session.client.models.register(name=name or Path(folder).name, folder=folder)
    if session.screen.as_json:
        session.screen.document(made)
    else:
        session.screen.show(made.id)


@group.command()
@connected
def download(
    session: Session,
    model: ModelId,
    to: Annotated[Path, typer.Argument(file_okay=False, help="A folder; it is made.")],
    form: FormOption = None,
) -> None:
    """Download a model into a folder that `from_pretrained` loads; what is there is not sent again."""
    client, screen = session.client, session.screen
    total = sum(file.bytes for file in client.models.files(model, form=form))
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=screen.notes,
        transient=True,
        disable=screen.as_json or not screen.notes.is_terminal,
    ) as progress:
        task = progress.add_task(model, total=total)
        files = client.models.download(
            model, to, form=form, on_bytes=lambda _, count: progress.advance(task, count)
        )
    if screen.as_json:
        screen.document(files)
    else:
        screen.note(f"{len(files)} files, {size(total)}, in {to}")


@group.command()
@connected
def delete(session: Session, model: ModelId) -> None:
    """Delete a trained model, or (admin) forget a base model, unless something uses it."""
    gone = session.client.models.delete(model)
    if session.screen.as_json:
        session.screen.document(gone)
    else:
        session.screen.note(f"deleted {gone.id}")
