"""The folders of a run in one process: what a stage leaves there, and from where it goes on. Torch-free."""

import hashlib
import json
import math
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from mpo.synced import sync, sync_tree, write_whole

KEY, STARTED, CHECKPOINTS, METRICS = "key", "started", "checkpoints", "metrics.jsonl"

_CHECKPOINT = re.compile(r"(\d+)(?:\.(\d+))?", re.ASCII)

PRINT_SECONDS = 2.0
"""A line of progress is printed at most this often, and at a stage's first and last step."""


@dataclass(frozen=True)
class StageFolder:
    """A stage's folder. key: the stage's key; a folder that holds another stage's work is emptied.

    `key` in it says that the stage is done; `started`, that its checkpoints and metrics are of this key.
    """

    path: Path
    key: str

    def is_done(self) -> bool:
        """Whether the outputs in the folder are those of this key."""
        return _read(self.path / KEY) == self.key

    def open(self) -> Path | None:
        """Makes the folder ready for an attempt; returns the newest checkpoint of the same key, or None."""
        # Whatever `key` holds: a kill may have torn it, and `started` goes only after it is whole.
        same = _read(self.path / STARTED) == self.key
        kept = {STARTED, CHECKPOINTS, METRICS} if same else set()
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not same:  # torn by a kill, it would tell the checkpoints for another key's
            write_whole(self.path / STARTED, self.key)
        checkpoints = self._checkpoints()
        newest = max(checkpoints, default=None)
        self._cut_metrics(newest[0] if newest else 0)
        return checkpoints[newest] if newest else None

    def has_checkpoint(self) -> bool:
        """Whether an attempt would go on from a checkpoint of this key."""
        return _read(self.path / STARTED) == self.key and bool(self._checkpoints())

    def _checkpoints(self) -> dict[tuple[int, int], Path]:
        """Whole ones, by step and by which of that step it is: the folders N, N.1, N.2, …"""
        named = ((_CHECKPOINT.fullmatch(path.name), path) for path in (self.path / CHECKPOINTS).glob("*"))
        return {(int(name[1]), int(name[2] or 0)): path for name, path in named if name}

    def _cut_metrics(self, step: int) -> None:
        """Drops the lines of steps after the checkpoint: they are taken again."""
        path = self.path / METRICS
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_whole(path, "".join(line for line in lines if _step(line) <= step))

    def keep_checkpoint(self, folder: Path, step: int) -> None:
        """Copies a complete checkpoint, and removes the older ones once it is on the disk.

        One of the same step is not replaced, but followed: killed anywhere here, a whole one is left.
        """
        older = self._checkpoints()
        partial = self.path / CHECKPOINTS / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        sync_tree(partial)
        before = [number for of_step, number in older if of_step == step]
        target = self.path / CHECKPOINTS / (f"{step}.{max(before) + 1}" if before else str(step))
        partial.rename(target)
        sync(target.parent)
        for path in older.values():
            shutil.rmtree(path)

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line; numbers that are not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def finish(self) -> None:
        """Marks the stage as done, once its outputs are on the disk, and drops its checkpoints."""
        sync_tree(self.path)
        write_whole(self.path / KEY, self.key)
        (self.path / STARTED).unlink()
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _step(line: str) -> float:
    """A line's step; a line that a crash cut off is dropped like a later one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf


@dataclass
class FolderReporter:
    """`mpo.reporter.Reporter` of a run in one process: into the stage's folder, and lines for a person.

    title: printed before each line. stop: set by whoever wants the run to end.
    """

    folder: StageFolder
    title: str
    checkpoint_seconds: float
    stop: threading.Event
    out: TextIO = field(default_factory=lambda: sys.stdout)
    started: float = field(default_factory=time.monotonic)
    last_checkpoint: float = field(default_factory=time.monotonic)
    last_print: float = -math.inf
    first_step: int | None = None

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Kept as a line of metrics.jsonl; printed now and then."""
        self.folder.append_metrics(step, metrics)
        if self.first_step is None:
            self.first_step = step
        now = time.monotonic()
        if now - self.last_print >= PRINT_SECONDS or step >= total_steps:
            self.last_print = now
            self.print(_progress_line(step, total_steps, metrics, self._eta(step, total_steps, now)))

    def _eta(self, step: int, total_steps: int, now: float) -> float | None:
        # The first step of an attempt pays for loading: the pace is that of the steps after it.
        done = step - (self.first_step or 0)
        if done <= 0:
            self.started = now
            return None
        return (now - self.started) / done * (total_steps - step)

    def print(self, text: str) -> None:
        """One line, at once."""
        print(f"{self.title}  {text}", file=self.out, flush=True)

    def warn(self, message: str) -> None:
        """Printed."""
        self.print(f"warning: {message}")

    def checkpoint_due(self) -> bool:
        """By the clock of this attempt."""
        return time.monotonic() - self.last_checkpoint >= self.checkpoint_seconds

    def checkpoint(self, folder: Path, step: int) -> None:
        """Copied into the stage's folder."""
        self.folder.keep_checkpoint(folder, step)
        self.last_checkpoint = time.monotonic()

    def should_stop(self) -> bool:
        """Whether `stop` is set."""
        return self.stop.is_set()


def _progress_line(step: int, total_steps: int, metrics: Mapping[str, float], eta: float | None) -> str:
    shown = [
        f"{name} {metrics[name]:.4g}" for name in ("loss", "reward", "kl", "accuracy") if name in metrics
    ]
    left = f"ETA {clock(eta)}" if eta is not None and step < total_steps else ""
    return "  ".join(part for part in (f"{step}/{total_steps}", *shown, left) if part)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256, in hex, of the names and contents of the files right in a folder; hidden ones do not count."""
    lines = [f"{path.name} {file_digest(path)}\n" for path in _visible_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _visible_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
