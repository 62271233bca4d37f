"""What `mpo demo` prints: plain lines, the same on a terminal and in a log."""

import textwrap
import time
from collections.abc import Sequence

from pydantic import JsonValue

from embedded.state import StateFolder
from mpo_client.comparisons import Comparison
from mpo_client.jobs import FINISHED, Job, Stage

_BEGAN_AT = time.monotonic()
_PROGRESS_SECONDS = 5.0
_LINE = 110
_SHOWN_METRICS = 4


def say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN_AT:6.1f} s] {text}", flush=True)


class Progress:
    """Tells each change of a stage once, and from time to time how far those that run are."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._told_at = 0.0

    def show(self, job: Job) -> None:
        for stage in job.stages:
            if stage.status != self._told.get(stage.name, "waiting") and stage.status != "queued":
                self._told[stage.name] = stage.status
                say(f"{stage.name}: {_status(stage)}{_took(stage)}")
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            running = [each for each in job.stages if each.status == "running" and each.progress]
            for stage in running:
                say(f"{stage.name}: {_how_far(stage)}{_left(job)}")
            self._told_at = time.monotonic() if running else self._told_at


def failure(job: Job) -> str:
    """Why a job did not succeed, with the end of what the stage printed."""
    parts = [f"job {job.id} {job.status}"]
    if job.error:
        parts.append(job.error.message)
    if job.pause:
        parts.append(f"{job.pause.reason}: {job.pause.message or ''}")
    for stage in job.stages:
        if stage.error:
            parts.append(f"stage {stage.name}: {stage.error.code}: {stage.error.message}")
            parts.append((stage.error.output or "")[-2000:])
    return "\n".join(part for part in parts if part)


def stages(job: Job) -> None:
    rows = [[each.name, _status(each), _seconds(each), _metrics(each.metrics)] for each in job.stages]
    _table(["stage", "status", "seconds", "last metrics"], rows)


def comparison(found: Comparison, shown: int) -> None:
    rates = [
        [_short(each.model_a), _short(each.model_b), f"{each.wins:g}/{each.losses:g}/{each.ties:g}",
         "" if each.win_rate is None else f"{each.win_rate:.3f}",
         f"{each.ci95[0]:.3f} to {each.ci95[1]:.3f}", str(each.n)]
        for each in found.win_rates or []
    ]  # fmt: skip
    print()
    _table(["model", "against", "won/lost/tied", "win rate", "95 % interval", "prompts"], rates)
    print("An interval that includes 0.5 is no win: prompts are few.\n")
    for row in found.rows[:shown]:
        _wrapped("prompt", row.prompt if isinstance(row.prompt, str) else str(row.prompt))
        for response in row.responses:
            score = "" if response.score is None else f" {response.score:+.2f}"
            _wrapped(f"{_short(response.model or '?')}{score}", response.text)
        print(flush=True)


def what_next(url: str, state: StateFolder, *, keep: bool) -> None:
    print(f"Everything is in {state.root}: artifacts in store/, logs in logs/, the admin key in api-key.")
    if keep:
        print(f"The service runs on at {url}; stop it with: mpo down --state {state.root}")
    else:
        print(f"Start the service again: mpo up --state {state.root}")
    print("Try next:")
    print(f"  - read the API: {url if keep else 'http://127.0.0.1:8000'}/docs")
    print("  - submit the job again with another split.threshold: only the split and what follows is run")
    print("  - register models of your own: MPO_MODELS=/path/to/model mpo up", flush=True)


def _status(stage: Stage) -> str:
    return "cached" if stage.cached and stage.status == "succeeded" else stage.status


def _took(stage: Stage) -> str:
    if stage.status not in FINISHED or stage.cached:
        return ""
    seconds = _seconds(stage)
    return f" after {seconds} s" if seconds else ""


def _seconds(stage: Stage) -> str:
    if stage.started_at is None or stage.finished_at is None:
        return ""
    return str(stage.finished_at - stage.started_at)


def _how_far(stage: Stage) -> str:
    progress = stage.progress
    assert progress is not None
    steps = "" if progress.step is None else f"step {progress.step}"
    if progress.step is not None and progress.total_steps:
        steps += f" of {progress.total_steps}"
    eta = "" if progress.eta_seconds is None else f", {progress.eta_seconds:.0f} s left"
    return f"{steps or 'running'}{eta}"


def _left(job: Job) -> str:
    if job.progress is None or job.progress.eta_seconds is None:
        return ""
    return f" (job: {job.progress.eta_seconds:.0f} s left)"


def _metrics(metrics: dict[str, JsonValue]) -> str:
    numbers = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers[:_SHOWN_METRICS])


def _short(model: str) -> str:
    """`ppo` for `job_…:ppo`."""
    return model.rpartition(":")[2]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _wrapped(label: str, text: str) -> None:
    one_line = " ".join(text.split())
    print(
        textwrap.fill(
            one_line, _LINE, initial_indent=f"{label:>12} | ", subsequent_indent=f"{'':>12} | ", max_lines=3
        )
        or f"{label:>12} |"
    )
