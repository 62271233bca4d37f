"""`mpo jobs submit`: a job from a spec, or only what it would do."""

from typing import Annotated

import typer

from mpo_client.cli.jobs import read_labels
from mpo_client.cli.screen import Screen, duration, size, table
from mpo_client.cli.session import Session, connected
from mpo_client.cli.spec_files import change, read_spec
from mpo_client.cli.watching import watch_job
from mpo_client.jobs import DryRun


def register(group: typer.Typer) -> None:
    group.command("submit")(submit)


@connected
def submit(
    session: Session,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A YAML or JSON file; - is stdin.")],
    dataset: Annotated[str | None, typer.Option(help="In place of the spec's.")] = None,
    model: Annotated[str | None, typer.Option(help="In place of the spec's.")] = None,
    name: Annotated[str | None, typer.Option(help="In place of the spec's.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="To find it by.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Such as method.split.threshold=1.0"),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it ends.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Create nothing: say what it would do.")] = False,
) -> None:
    """Submit a job. Prints its id; with --watch, how it goes."""
    labels = read_labels(label or [])
    asked = change(read_spec(spec), set_ or [])
    named = {"dataset": dataset, "model": model, "name": name}
    asked.update({field: value for field, value in named.items() if value is not None})
    if labels:
        held = asked.get("labels")
        asked["labels"] = {**(held if isinstance(held, dict) else {}), **labels}
    client, screen = session.client, session.screen
    if dry_run:
        planned = client.jobs.dry_run(asked)
        return screen.document(planned) if screen.as_json else _show_plan(screen, planned)
    job = client.jobs.create(asked)
    if not (screen.as_json and watch):
        screen.document(job) if screen.as_json else screen.show(job.id)
    if watch:
        watch_job(session, job.id)
    elif not screen.as_json:
        screen.note(f"watch it with: mpo jobs watch {job.id}")
    return None


def _show_plan(screen: Screen, planned: DryRun) -> None:
    head = ("stage", "cached", "tokens", "memory", "time", "basis")
    rows = [
        (s.name, s.cached, s.tokens, size(s.memory_bytes), duration(s.seconds), s.basis)
        for s in planned.stages
    ]
    screen.show(table(head, rows, numbers=("tokens", "memory", "time")))
    told: dict[str, list[str]] = {}
    for stage in planned.stages:
        for problem in stage.problems:
            told.setdefault(problem, []).append(stage.name)
    for problem, stages in told.items():
        screen.note(f"{', '.join(stages)}: {problem}")
    known = [stage.seconds for stage in planned.stages if stage.seconds is not None]
    open_end = "at least " if len(known) < len(planned.stages) else ""
    screen.note(f"nothing was created; one stage after another takes {open_end}{duration(sum(known))}")
