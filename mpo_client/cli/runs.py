"""`mpo runs`: show, log."""

from typing import Annotated

import typer

from mpo_client.cli.screen import facts, moment, table
from mpo_client.cli.session import Session, connected

group = typer.Typer(help="Look at one execution of a stage: its tries, its output.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="run_…, as `mpo jobs show --json` names it")]


@group.command()
@connected
def show(session: Session, run: RunId) -> None:
    """Show a run, and the other runs of the same work."""
    found = session.client.runs.get(run)
    if session.screen.as_json:
        return session.screen.document(found)
    error = found.error
    session.screen.show(
        facts(
            [
                ("id", found.id),
                ("kind", found.kind),
                ("status", found.status),
                ("job", found.job),
                ("attempt", found.attempt),
                ("worker", found.worker),
                ("checkpoint at step", found.checkpoint_step),
                ("started", moment(found.started_at)),
                ("finished", moment(found.finished_at)),
                ("error", error and f"{error.code}: {error.message}"),
            ]
        ),
        "",
        table(
            ("run", "status", "attempt", "started", "finished"),
            [
                (a.run_id, a.status, a.attempt, moment(a.started_at), moment(a.finished_at))
                for a in found.attempts
            ],
        ),
    )
    return None


@group.command()
@connected
def log(session: Session, run: RunId) -> None:
    """Print the end of what the run's process printed."""
    found = session.client.runs.log(run)
    if session.screen.as_json:
        session.screen.value({"run": run, "log": found})
    else:
        session.screen.show(found.rstrip("\n"))
