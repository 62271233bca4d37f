"""Waits at a terminal: Ctrl-C ends the wait, not what is waited for."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mpo_client.cli import exit_codes
from mpo_client.cli.screen import Screen


@contextmanager
def leaves_running(screen: Screen, id_: str, advice: str = "") -> Iterator[None]:
    """Within it Ctrl-C says that `id_` goes on, with `advice`, and ends the command as interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        screen.note(f"\n{id_} goes on without you{advice}")
        raise typer.Exit(exit_codes.INTERRUPTED) from None


@contextmanager
def at_work(screen: Screen, id_: str) -> Iterator[None]:
    """Says on a terminal that `id_` is at work, and leaves it running at Ctrl-C."""
    with leaves_running(screen, id_), screen.notes.status(f"{id_} is at work"):
        yield
