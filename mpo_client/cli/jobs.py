"""`mpo jobs`: all but `submit` and `watch`, which have a file each."""

from typing import Annotated

import typer
from rich.text import Text

from mpo_client.cli import charts
from mpo_client.cli.error_lines import Misuse
from mpo_client.cli.job_board import overview, stage_table
from mpo_client.cli.screen import duration, moment, table
from mpo_client.cli.session import Session, connected
from mpo_client.events import Event
from mpo_client.jobs import Job, Status
from mpo_client.metrics import MetricSeries

group = typer.Typer(help="Submit jobs, watch them, and steer them.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="job_…")]
_CHART_ROWS = 10


@group.command("list")
@connected
def list_jobs(
    session: Session,
    status: Annotated[Status | None, typer.Option(help="Only those.")] = None,
    method: Annotated[str | None, typer.Option(help="Only of this type: mpo, dpo, …")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only those that train on it.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="All must hold.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
) -> None:
    """List jobs, newest first."""
    labels = read_labels(label or [])
    found = [
        *session.client.jobs.list(status=status, method=method, dataset=dataset, labels=labels, limit=limit)
    ]
    if session.screen.as_json:
        return session.screen.document(found)
    rows = [
        (j.id, j.status, _fraction(j), duration(j.progress.eta_seconds if j.progress else None), j.name)
        for j in found
    ]
    return session.screen.show(
        table(("id", "status", "done", "left", "name"), rows, numbers=("done", "left"))
    )


def read_labels(texts: list[str]) -> dict[str, str]:
    """`name=value`. Raises Misuse."""
    labels = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise Misuse(f"--label {text}: should be NAME=VALUE")
        labels[name] = value
    return labels


def _fraction(job: Job) -> str:
    fraction = job.progress.fraction if job.progress else None
    return "" if fraction is None else f"{fraction:.0%}"


@group.command()
@connected
def show(session: Session, job: JobId) -> None:
    """Show a job, its stages and its models."""
    found = session.client.jobs.get(job)
    if session.screen.as_json:
        return session.screen.document(found)
    return session.screen.show(overview(found), "", stage_table(found))


@group.command()
@connected
def cancel(session: Session, job: JobId) -> None:
    """Cancel a job at once; what it has finished is kept."""
    _changed(session, session.client.jobs.cancel(job))


@group.command()
@connected
def pause(session: Session, job: JobId) -> None:
    """Pause a job: what runs saves a checkpoint and stops."""
    _changed(session, session.client.jobs.pause(job))


@group.command()
@connected
def resume(
    session: Session,
    job: JobId,
    threshold: Annotated[float | None, typer.Option(help="Easy from this gap on.")] = None,
    quantile: Annotated[float | None, typer.Option(help="Easy from this quantile of the gaps on.")] = None,
    easy_fraction: Annotated[float | None, typer.Option(help="This share of the pairs is easy.")] = None,
) -> None:
    """Resume a paused job, if wanted with another split: it and what depends on it run anew."""
    given = {"threshold": threshold, "quantile": quantile, "easy_fraction": easy_fraction}
    split = {name: value for name, value in given.items() if value is not None}
    _changed(session, session.client.jobs.resume(job, split=split or None))


def _changed(session: Session, job: Job) -> None:
    if session.screen.as_json:
        session.screen.document(job)
    else:
        session.screen.show(f"{job.id} {job.status}")


@group.command()
@connected
def events(
    session: Session,
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only those beyond this id.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="As they come, until the job's last.")
    ] = False,
) -> None:
    """Show what happened in a job, oldest first. With --follow, --json gives a document a line."""
    client, screen = session.client, session.screen
    if follow:
        for event in client.jobs.stream_events(job, after=after):
            screen.line_of(event) if screen.as_json else screen.show(_line(event))
        return
    found = [*client.jobs.events(job, after=after, limit=limit)]
    if screen.as_json:
        return screen.document(found)
    return screen.show(*map(_line, found))


def _line(event: Event) -> Text:
    stage = f" {event.stage}" if event.stage else ""
    return Text(f"{event.id:5}  {moment(event.created_at)}  {event.type}{stage}: {event.message}")


@group.command()
@connected
def metrics(
    session: Session,
    job: JobId,
    stage: Annotated[str | None, typer.Option(help="Of this stage alone.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="These alone, drawn large.")] = None,
    points: Annotated[int, typer.Option(min=1, max=10_000, help="Steps of each at most.")] = 500,
) -> None:
    """Show what the stages reported by step, as curves."""
    found = session.client.jobs.metrics(job, stage=stage, names=name, points=points)
    screen = session.screen
    if screen.as_json:
        return screen.document(found)
    if not found:
        return screen.note("nothing has been reported yet under these names")
    if name:
        return screen.show(*(_chart(series, min(screen.out.width, 80)) for series in found))
    head = ("stage", "metric", "by step", "first", "last", "least", "most")
    return screen.show(table(head, map(_row, found), numbers=head[3:]))


def _row(series: MetricSeries) -> tuple[object, ...]:
    known = [value for value in series.values if value is not None]
    ends = (known[0], known[-1], min(known), max(known)) if known else (None,) * 4
    return series.stage, series.name, charts.curve(series.values, 14)[0], *map(_short, ends)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _chart(series: MetricSeries, width: int) -> Text:
    known = [value for value in series.values if value is not None]
    if not known:
        return Text(f"{series.stage} {series.name}: no number")
    labels = [f"{max(known):.4g}", *[""] * (_CHART_ROWS - 2), f"{min(known):.4g}"]
    room = max(map(len, labels)) + 1
    rows = charts.curve(series.values, width - room, _CHART_ROWS)
    lines = [f"{label:>{room - 1}} {row}" for label, row in zip(labels, rows, strict=True)]
    steps = f"{'':{room}}steps {series.steps[0]:,} to {series.steps[-1]:,}, last {known[-1]:.4g}\n"
    return Text("\n".join([f"{series.stage} {series.name}", *lines, steps]), no_wrap=True)


@group.command()
@connected
def report(session: Session, job: JobId) -> None:
    """Print the report of a job that has succeeded, as JSON."""
    session.screen.document(session.client.jobs.report(job))


@group.command()
@connected
def delete(session: Session, job: JobId) -> None:
    """Delete a finished job."""
    gone = session.client.jobs.delete(job)
    if session.screen.as_json:
        session.screen.document(gone)
    else:
        session.screen.note(f"deleted {gone.id}")
