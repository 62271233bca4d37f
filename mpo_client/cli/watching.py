"""`mpo jobs watch`: a job live on a terminal, in plain lines elsewhere, until it needs nobody to watch it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.live import Live

from mpo_client.cli import exit_codes
from mpo_client.cli.job_board import board, status_line
from mpo_client.cli.jobs import JobId
from mpo_client.cli.screen import Screen, duration
from mpo_client.cli.session import Session, connected
from mpo_client.cli.waiting import leaves_running
from mpo_client.jobs import Job

_FRAMES_A_SECOND = 4
_PROGRESS_SECONDS = 10.0
_SHOWN_OUTPUT_LINES = 15


def register(group: typer.Typer) -> None:
    group.command("watch")(watch)


@connected
def watch(session: Session, job: JobId) -> None:
    """Watch a job until it has finished or paused. Ctrl-C leaves it running.

    Ends with 0 where it succeeded, 4 where it failed or was cancelled, 5 where it waits for you.
    """
    watch_job(session, job)


def watch_job(session: Session, job_id: str) -> None:
    """Raises typer.Exit where the job has not succeeded."""
    client, screen = session.client, session.screen
    with leaves_running(screen, job_id, f"; cancel it with: mpo jobs cancel {job_id}"), shown(screen) as show:
        job = client.jobs.wait(job_id, deadline_seconds=math.inf, on_change=show)
    if screen.as_json:
        screen.document(job)
    else:
        _tell_end(screen, job)
    if job.status == "paused":
        raise typer.Exit(exit_codes.PAUSED)
    if job.status != "succeeded":
        raise typer.Exit(exit_codes.UNSUCCESSFUL)


@contextmanager
def shown(screen: Screen) -> Iterator[Callable[[Job], None]]:
    """Gives what shows each state of a job: bars on a terminal, lines elsewhere, nothing with --json."""
    if screen.as_json:
        yield lambda job: None
    elif screen.out.is_terminal:
        with Live(console=screen.out, refresh_per_second=_FRAMES_A_SECOND) as live:
            yield lambda job: live.update(board(job))
    else:
        yield Lines(screen).show


class Lines:
    """Tells each change of a stage once, and from time to time how far those are that run."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._told: dict[str, str] = {}
        self._told_at = 0.0

    def show(self, job: Job) -> None:
        is_time = time.monotonic() - self._told_at >= _PROGRESS_SECONDS
        for stage in job.stages:
            is_new = stage.status != self._told.get(stage.name, "waiting")
            if is_new or (is_time and stage.status == "running"):
                self._told[stage.name] = stage.status
                self._screen.show(status_line(stage))
                self._told_at = time.monotonic()


def _tell_end(screen: Screen, job: Job) -> None:
    took = job.finished_at - job.started_at if job.finished_at and job.started_at else None
    after = f" after {duration(took)}" if took is not None else ""
    screen.show(f"{job.id} {job.status}{after}")
    if job.status == "succeeded":
        for model in job.models.values():
            screen.show(f"  {model}")
        screen.note(f"look at it with: mpo gaps histogram {job.id}; mpo jobs metrics {job.id}")
    elif job.status == "paused" and job.pause:
        screen.note(f"{job.pause.reason}: {job.pause.message or ''}")
        screen.note(
            f"look with: mpo gaps preview {job.id}; go on with: mpo jobs resume {job.id} [--threshold X]"
        )
    elif job.error:
        screen.note(f"error: {job.error.code}: {job.error.message}")
        screen.note("\n".join((job.error.output or "").rstrip().splitlines()[-_SHOWN_OUTPUT_LINES:]))
