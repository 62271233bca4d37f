"""A job as people look at it: a head, and a line a stage that fits 80 columns."""

from collections.abc import Mapping

from pydantic import JsonValue
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mpo_client.cli.charts import bar
from mpo_client.cli.screen import STYLES, cell, duration, facts, moment
from mpo_client.jobs import Failure, Job, Stage

_BAR_COLUMNS = 12
# The most telling first: a narrow screen shows few.
_TELLING = ("reward", "kl", "accuracy", "loss")


def board(job: Job) -> Group:
    """What is shown while a job is watched."""
    done = job.progress.fraction if job.progress else None
    left = job.progress.eta_seconds if job.progress else None
    head = Text(f"{job.id} ", no_wrap=True, overflow="ellipsis")
    head.append(job.status, STYLES.get(job.status, ""))
    head.append("" if done is None else f"  {done:.0%}")
    head.append(f"  {duration(left)} left" if left and not job.is_finished else "")
    head.append(f"  {job.name}" if job.name else "", "dim")
    return Group(head, stage_table(job, expand=True))


def overview(job: Job) -> Table:
    """The job without its stages."""
    waits = f"{job.pause.reason}: {job.pause.message or ''}" if job.pause else None
    return facts(
        [
            ("id", job.id),
            ("name", job.name or None),
            ("status", job.status),
            ("method", job.method.get("type")),
            ("model", job.model),
            ("dataset", job.dataset),
            ("eval dataset", job.eval_dataset),
            ("labels", ", ".join(f"{name}={value}" for name, value in job.labels.items()) or None),
            ("queue position", job.queue_position),
            ("waits for you", waits),
            ("created", moment(job.created_at)),
            ("started", moment(job.started_at)),
            ("finished", moment(job.finished_at)),
            ("models", "\n".join(job.models.values()) or None),
            ("error", _why(job.error)),
        ]
    )


def stage_table(job: Job, *, expand: bool = False) -> Table:
    """A line a stage: status, how far it is, the time left, its latest metrics.

    expand: to the edge of the screen.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), expand=expand)
    made.add_column("stage", no_wrap=True, max_width=22, overflow="ellipsis")
    made.add_column("status", no_wrap=True, width=9)
    made.add_column("", width=_BAR_COLUMNS)
    made.add_column("step", no_wrap=True, justify="right")
    made.add_column("left/took", no_wrap=True, justify="right", min_width=9)
    made.add_column("latest", no_wrap=True, overflow="ellipsis", ratio=1)
    for stage in job.stages:
        made.add_row(
            cell(stage.name),
            cell(_status(stage)),
            _bar(stage),
            _steps(stage),
            _left(stage),
            _latest(stage),
        )
    return made


def status_line(stage: Stage) -> str:
    """A stage in one line, where there is no terminal."""
    parts = [f"{stage.name}: {_status(stage)}"]
    if stage.status == "running" and _steps(stage):
        left = duration(stage.progress.eta_seconds) if stage.progress else ""
        parts += [f"step {_steps(stage)}", f"{left} left" if left else "", metrics_text(stage.metrics)]
    if stage.error:
        parts.append(f"{stage.error.code}: {stage.error.message}")
    return ", ".join(part for part in parts if part)


def metrics_text(metrics: Mapping[str, JsonValue]) -> str:
    """Numbers alone, the most telling first."""
    numbers = {
        name: v for name, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
    names = [
        *(name for name in _TELLING if name in numbers),
        *(name for name in numbers if name not in _TELLING),
    ]
    return ", ".join(f"{name} {numbers[name]:.3g}" for name in names)


def _status(stage: Stage) -> str:
    return "cached" if stage.cached and stage.status == "succeeded" else stage.status


def _bar(stage: Stage) -> Text:
    # Of blocks, so that it is read without colours too; the dots are what is still to do.
    done = bar(_fraction(stage), 1.0, _BAR_COLUMNS)
    text = Text(done, STYLES.get(stage.status, ""))
    return text.append("·" * (_BAR_COLUMNS - len(done)) if stage.status == "running" else "", "dim")


def _fraction(stage: Stage) -> float:
    if stage.status == "succeeded":
        return 1.0
    return (stage.progress.fraction if stage.progress else None) or 0.0


def _steps(stage: Stage) -> str:
    progress = stage.progress
    if progress is None or not progress.step:
        return ""
    return f"{progress.step}/{progress.total_steps}" if progress.total_steps else str(progress.step)


def _left(stage: Stage) -> str:
    if stage.status == "running":
        return duration(stage.progress.eta_seconds if stage.progress else None)
    if stage.cached or stage.started_at is None or stage.finished_at is None:
        return ""
    return f"({duration(stage.finished_at - stage.started_at)})"


def _latest(stage: Stage) -> Text:
    if stage.error:
        return Text(f"{stage.error.code}: {stage.error.message}", "red")
    return Text(metrics_text(stage.metrics))


def _why(error: Failure | None) -> str | None:
    return None if error is None else f"{error.code}: {error.message}"
