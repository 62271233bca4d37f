"""`mpo status`: how the service is."""

import typer

from mpo_client.cli import exit_codes
from mpo_client.cli.screen import duration, table
from mpo_client.cli.session import Session, connected


def register(app: typer.Typer) -> None:
    app.command()(status)


@connected
def status(session: Session) -> None:
    """Show whether every part of the service is there, and what waits in its queue."""
    operations, screen = session.client.operations, session.screen
    ready = operations.ready()
    if screen.as_json:
        screen.document(ready)
    else:
        rows = [(name, "ready" if each.ok else "failed", each.message) for name, each in ready.checks.items()]
        screen.show(table(("part", "status", "says"), rows))
        head = ("slot", "workers", "running", "queued", "paused", "oldest waits")
        slots = [
            (s.slot, s.workers, s.running, s.queued, s.paused, duration(s.oldest_queued_seconds))
            for s in operations.queue()
        ]
        screen.show("", table(head, slots, numbers=head[1:]))
    if not ready.ready:
        raise typer.Exit(exit_codes.REFUSED)
