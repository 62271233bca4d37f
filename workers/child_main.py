"""The child's side: runs one unit of work in a process group of its own and reports over a pipe.

Forked from a server that has the libraries imported already. When the worker dies, so does the whole group.
Of a training on several ranks the child is the first, and forks the others.
"""

import json
import logging
import os
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import TypeAdapter

from core import logs
from core.logs import bind
from mpo.config import Stage
from mpo.errors import StageInterrupted
from mpo.reporter import Reporter, SilentReporter, StageInput, StageTask
from mpo.spreading import is_spread
from workers.child_protocol import Checkpointed, ChildTask, Done, Failed, Progress, Rows, Stopped, Warned
from workers.device_use import device_in_use, lock_file
from workers.failures import failed
from workers.followers import start_followers
from workers.priority import CHILD, give_way
from workers.threads import threads_for

NAMED_LIBRARIES = ("torch", "transformers", "trl", "numpy", "pyarrow")
STAGE: TypeAdapter[Stage] = TypeAdapter(Stage)
OTHER_WORK = frozenset({"validate_dataset", "compare"})
"""Kinds that are no stage of a plan."""
MEETING = "meeting"
"""The file, beside the log, by which the ranks of a training find each other."""

logger = logging.getLogger(__name__)


class PipeReporter:
    """`mpo.reporter.Reporter` over the pipe to the worker."""

    def __init__(self, pipe: Connection, checkpoint_seconds: float) -> None:
        self._pipe, self._checkpoint_seconds = pipe, checkpoint_seconds
        self._last_checkpoint = time.monotonic()
        self._stop_asked = False
        signal.signal(signal.SIGTERM, self._on_stop)

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Sent at once; the worker batches."""
        self._pipe.send(Progress(step, total_steps, dict(metrics)))

    def warn(self, message: str) -> None:
        """Becomes an event of the job."""
        self._pipe.send(Warned(message))

    def checkpoint_due(self) -> bool:
        """By the clock of this attempt."""
        return time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds

    def checkpoint(self, folder: Path, step: int) -> None:
        """Returns once the worker has stored and recorded it, so that the stage may delete the folder."""
        self._pipe.send(Checkpointed(folder, step))
        self._pipe.recv()
        self._last_checkpoint = time.monotonic()

    def should_stop(self) -> bool:
        """SIGTERM has come."""
        return self._stop_asked

    def _on_stop(self, *_: object) -> None:
        # No Event: a second signal within its lock would wait for the first for ever.
        self._stop_asked = True

    def rows(self, rows: list[dict[str, object]]) -> None:
        """Rows of a comparison."""
        self._pipe.send(Rows(rows))


def main(task: ChildTask, pipe: Connection, life: Connection) -> None:
    """Entry of the child process."""
    os.setsid()
    give_way(CHILD)
    reporter = PipeReporter(pipe, float(task.config.get("checkpoint_seconds", 300.0)))
    _log_to(task.log)
    if (count := ranks_of(task)) > 1:
        start_followers(count, partial(_follow, task, reporter, life))
    threading.Thread(target=_die_with_worker, args=(life,), daemon=True).start()
    with bind(**task.log_fields):
        logger.info("begins in process %d, the first of %d", os.getpid(), count)
        outcome = _outcome(task, reporter, count)
        logger.info("ends: %s", outcome.code if isinstance(outcome, Failed) else type(outcome).__name__)
    pipe.send(outcome)


def ranks_of(task: ChildTask) -> int:
    """Processes that do it together: more than one only of a training that can be spread."""
    return 1 if task.ranks == 1 or task.kind in OTHER_WORK else _ranks_of_stage(task, _stage_config(task))


def _ranks_of_stage(task: ChildTask, config: Stage) -> int:
    return task.ranks if is_spread(config) else 1


def _stage_config(task: ChildTask) -> Stage:
    return STAGE.validate_python(dict(task.config))


def _follow(task: ChildTask, reporter: PipeReporter, life: Connection, number: int) -> None:
    """A follower's whole life; what it fails of, the first rank reports. reporter: hears of stops alone."""
    threading.Thread(target=_die_with_worker, args=(life,), daemon=True).start()
    with suppress(StageInterrupted):
        _run_stage(task, SilentReporter(reporter.should_stop), number)


def _outcome(task: ChildTask, reporter: PipeReporter, ranks: int) -> Done | Stopped | Failed:
    try:
        _perform(task, reporter)
    except StageInterrupted:
        return Stopped()
    except Exception as error:  # the border: every failure becomes a row that a person can read
        traceback.print_exc()
        return failed(error)
    return _done(ranks)


def _perform(task: ChildTask, reporter: PipeReporter) -> None:
    if task.kind == "validate_dataset":
        _validate(task, reporter)
    elif task.kind == "compare":
        _compare(task, reporter)
    else:
        _run_stage(task, reporter)


def _run_stage(task: ChildTask, reporter: Reporter, number: int = 0) -> None:
    """number: this process's among the ranks of the task."""
    from mpo.stages import run_stage

    config = _stage_config(task)
    count = _ranks_of_stage(task, config)
    if config.slot == "gpu":
        folders = (each.path for given in task.inputs.values() for each in given)
        _share_cores(threads_for(task.torch_threads, folders), count)
    inputs = {role: tuple(StageInput(i.name, i.path) for i in found) for role, found in task.inputs.items()}
    stage = StageTask(config, inputs, task.output, task.seed, task.resume, task.tokens)
    with device_in_use(lock_file()) if config.slot == "gpu" else nullcontext():
        if count == 1:
            run_stage(stage, reporter)
            return
        from mpo.leading import take_part
        from mpo.process_group import ProcessGroup

        meeting = task.log.with_name(MEETING)
        with ProcessGroup.joined(meeting, number, count, sharded=task.sharded) as group:
            take_part(group, stage, reporter)


def _share_cores(threads: int, ranks: int) -> None:
    """threads: of all ranks together; 0 = as many as torch would take."""
    if threads or ranks > 1:
        import torch

        torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // ranks))


def _validate(task: ChildTask, reporter: PipeReporter) -> None:
    from mpo.dataset_files import validate_file

    def on_progress(read: int, size: int) -> None:
        if reporter.should_stop():
            raise StageInterrupted
        reporter.progress(read, size, {})

    report = validate_file(
        task.inputs["content"][0].path,
        task.output / "rows.parquet",
        kind=task.config["kind"],
        media_type=task.config.get("media_type"),
        max_bad_rows=task.config["max_bad_rows"],
        on_progress=on_progress,
    )
    _write_summary(task, report.to_json())


def _compare(task: ChildTask, reporter: PipeReporter) -> None:
    from core.comparing import ComparisonRequest
    from workers.comparison import compare

    sources = {role: [dict(i.source) for i in found] for role, found in task.inputs.items()}
    summary = compare(
        ComparisonRequest.model_validate(dict(task.config)),
        sources,
        reporter.rows,
        reporter.progress,
        reporter.should_stop,
    )
    _write_summary(task, summary)


def _write_summary(task: ChildTask, summary: Mapping[str, object]) -> None:
    (task.output / "summary.json").write_text(json.dumps(summary, allow_nan=False))


def _done(ranks: int) -> Done:
    # ru_maxrss counts kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    versions = {name: version(name) for name in NAMED_LIBRARIES if name in sys.modules}
    return Done(peak, {"python": platform.python_version(), **versions}, _hardware(ranks))


def _hardware(ranks: int) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        name = str(torch.cuda.get_device_name(0))
        return name if ranks == 1 else f"{ranks} x {name}"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _die_with_worker(life: Connection) -> None:
    """The worker alone holds the other end: its end means that the worker is gone."""
    try:
        life.recv_bytes()
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def _log_to(path: Path) -> None:
    """Lines go on to the worker's log, and with all that is printed to the run's own, for its owner."""
    logs.configure("child", os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    printed = logging.StreamHandler(sys.stderr)
    printed.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(printed)
