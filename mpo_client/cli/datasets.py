"""`mpo datasets`: upload, list, show, report, rows, delete."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mpo_client.cli import exit_codes
from mpo_client.cli.screen import facts, moment, size, table
from mpo_client.cli.session import Session, connected
from mpo_client.datasets import Dataset, Kind

group = typer.Typer(
    help="Upload files of preferences, and look at what validation found.", no_args_is_help=True
)

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="ds_…")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]


@group.command()
@connected
def upload(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, readable=True, help=".jsonl, .json, .csv, .parquet; also gzipped."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The file's name where not given.")] = None,
    kind: Annotated[Kind, typer.Option(help="What its rows are.")] = "preference",
    max_bad_rows: Annotated[int, typer.Option(min=0, help="More bad rows make it invalid.")] = 0,
    wait: Annotated[bool, typer.Option(help="Wait until it is validated.")] = True,
) -> None:
    """Upload a file as a dataset, and wait until it is validated. Prints the dataset's id."""
    client, screen = session.client, session.screen
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=screen.notes,
        transient=True,
        disable=screen.as_json or not screen.notes.is_terminal,
    ) as progress:
        task = progress.add_task(file.name, total=file.stat().st_size)
        dataset = client.datasets.upload(
            file,
            name=name,
            kind=kind,
            max_bad_rows=max_bad_rows,
            on_progress=lambda sent, total: progress.update(task, completed=sent, total=total),
        )
    if wait:
        dataset = client.datasets.wait(dataset.id)
    if screen.as_json:
        screen.document(dataset)
    else:
        screen.show(dataset.id)
        screen.note(_said(dataset))
    if dataset.status == "invalid":
        raise typer.Exit(exit_codes.REFUSED)


def _said(dataset: Dataset) -> str:
    if dataset.status == "invalid":
        why = dataset.error.message if dataset.error else "it is invalid"
        return f"error: {why}; see: mpo datasets report {dataset.id}"
    if dataset.status == "ready":
        bad = f", {dataset.bad_rows} refused" if dataset.bad_rows else ""
        return f"ready: {dataset.rows:,} rows{bad}"
    return f"{dataset.status}; see: mpo datasets show {dataset.id}"


@group.command("list")
@connected
def list_datasets(session: Session, limit: Limit = 20) -> None:
    """List datasets, newest first."""
    found = [*session.client.datasets.list(limit=limit)]
    if session.screen.as_json:
        return session.screen.document(found)
    rows = [(each.id, each.name, each.kind, each.status, each.rows, size(each.bytes)) for each in found]
    head = ("id", "name", "kind", "status", "rows", "size")
    return session.screen.show(table(head, rows, numbers=("rows", "size")))


@group.command()
@connected
def show(session: Session, dataset: DatasetId) -> None:
    """Show a dataset."""
    found = session.client.datasets.get(dataset)
    if session.screen.as_json:
        return session.screen.document(found)
    return session.screen.show(
        facts(
            [
                ("id", found.id),
                ("name", found.name),
                ("kind", found.kind),
                ("status", found.status),
                ("format", found.format),
                ("rows", found.rows),
                ("refused", found.bad_rows),
                ("size", size(found.bytes)),
                ("sha256", found.sha256),
                ("created", moment(found.created_at)),
                ("error", found.error and found.error.message),
            ]
        )
    )


@group.command()
@connected
def report(
    session: Session,
    dataset: DatasetId,
    model: Annotated[str | None, typer.Option(help="Count lengths in its tokens too.")] = None,
    against: Annotated[str | None, typer.Option(help="Another dataset: how many prompts both hold.")] = None,
) -> None:
    """Show what validation found: refused rows, duplicates, lengths."""
    found = session.client.datasets.report(dataset, model=model, against=against)
    screen = session.screen
    if screen.as_json:
        return screen.document(found)
    screen.show(
        facts(
            [
                ("rows", found.rows),
                ("refused", found.bad_rows),
                ("duplicates", found.duplicates),
                ("conflicting labels", found.conflicting),
                ("identical responses", found.identical),
                ("accuracy by length alone", found.length_baseline_accuracy),
                ("shared prompts", found.shared_prompts),
            ]
        )
    )
    for unit, lengths in (("characters", found.lengths), ("tokens", found.tokens)):
        if lengths:
            names = [*next(iter(lengths.values()))]
            screen.show(
                "",
                table(
                    (unit, *names),
                    [(part, *values.values()) for part, values in lengths.items()],
                    numbers=names,
                ),
            )
    if found.bad:
        screen.show(
            "",
            table(("line", "column", "refused because"), [(b.line, b.column, b.message) for b in found.bad]),
        )
    return None


@group.command()
@connected
def rows(session: Session, dataset: DatasetId, limit: Limit = 20) -> None:
    """Show the canonical rows, a JSON object a line, in the file's order."""
    found = [*session.client.datasets.rows(dataset, limit=limit)]
    if session.screen.as_json:
        return session.screen.document(found)
    for row in found:
        session.screen.show(json.dumps(row.model_dump(exclude_unset=True), ensure_ascii=False))
    return None


@group.command()
@connected
def delete(session: Session, dataset: DatasetId) -> None:
    """Delete a dataset, unless a job that has not finished uses it."""
    gone = session.client.datasets.delete(dataset)
    if session.screen.as_json:
        session.screen.document(gone)
    else:
        session.screen.note(f"deleted {gone.id}")
