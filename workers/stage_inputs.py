"""Fetches a run's inputs into a folder for its child, and stores what the child leaves."""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from core.settings import settings
from core.storage import Storage
from core.stored_files import StoredFile, files_digest
from core.work_items import ClaimedRun, NewArtifact
from mpo.plan import OUTPUTS
from workers.child_protocol import ChildInput, ChildTask, Done
from workers.scratch import token_cache

RUN_OUTPUTS = {"validate_dataset": {"rows": "rows.parquet"}, "compare": {}}
NOT_FETCHED = frozenset({"compare"})
"""Kinds that need to know where their inputs are, and leave reading them to somebody else."""


class OutputMissing(Exception):
    """A child ended well, and left too little: if that were published, it would be done again without end."""


def fetch(claimed: ClaimedRun, folder: Path, storage: Storage) -> ChildTask:
    """The child's task, with every input as a local path. A file on this machine is read where it lies.

    What several roles name is fetched once: it is the same thing to the child, too.
    """
    output = folder / "output"
    output.mkdir(parents=True)
    fetched: dict[str, Path] = {}
    inputs = {
        role: tuple(
            _fetch_one(claimed.kind, source, folder / "inputs" / role / str(place), storage, fetched)
            for place, source in enumerate(sources)
        )
        for role, sources in claimed.inputs.items()
    }
    resume = None
    if claimed.checkpoint is not None and storage.holds_folder(claimed.checkpoint["location"]):
        resume = storage.fetch(claimed.checkpoint["location"], folder / "resume")
    return ChildTask(
        kind=claimed.kind,
        config=claimed.config,
        inputs=inputs,
        output=output,
        seed=claimed.seed,
        resume=resume,
        log=folder / "log",
        torch_threads=settings().torch_threads,
        redis_url=settings().redis_url.get_secret_value(),
        ranks=settings().ranks,
        sharded=settings().sharded,
        tokens=token_cache(),
    )


def store(
    claimed: ClaimedRun, task: ChildTask, done: Done, wall_seconds: float, storage: Storage
) -> tuple[list[NewArtifact], dict[str, Any]]:
    """Put the output folder into the store, manifest last; returns artifacts to publish, and the summary.

    Raises OutputMissing.
    """
    location = f"runs/{claimed.id}/{claimed.fence}/out"
    stored = storage.put_folder(location, task.output)
    summary_file = task.output / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.is_file() else {}
    outputs = OUTPUTS.get(claimed.kind) or RUN_OUTPUTS[claimed.kind]
    artifacts = []
    for output, relative in outputs.items():
        files = _files_of(stored, relative)
        if not files:
            raise OutputMissing(f"The {claimed.kind} left no {relative}, its output {output}")
        artifacts.append(
            NewArtifact(
                output=output,
                location=f"{location}/{relative}",
                sha256=files_digest(files),
                bytes=sum(file.bytes for file in files),
                files=[vars(file) for file in files],
                inputs=_lineage(claimed),
                versions=done.versions,
                hardware=done.hardware,
                wall_seconds=round(wall_seconds, 3),
                peak_memory_bytes=done.peak_memory_bytes,
            )
        )
    return artifacts, summary


def store_checkpoint(claimed: ClaimedRun, folder: Path, step: int, storage: Storage) -> str:
    """Put a checkpoint under the run's own fence; returns its location.

    Beside a whole one of the same step, never over it: a stage that stops may hand over the step that it was
    at already, and if that is the recorded one, whoever ends this worker meanwhile would leave none.
    """
    first = location = f"runs/{claimed.id}/{claimed.fence}/checkpoints/{step}"
    for number in count(2):
        if not storage.holds_folder(location):
            break
        location = f"{first}-{number}"
    storage.delete(location)
    storage.put_folder(location, folder)
    return location


def drop_older_folders(scratch: Path, run_id: str) -> None:
    """Remove what earlier attempts at this run left on this machine: their fences are over."""
    for folder in scratch.glob(f"{run_id}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _fetch_one(
    kind: str, source: dict[str, Any], target: Path, storage: Storage, fetched: dict[str, Path]
) -> ChildInput:
    """fetched: local paths by location; the input's is added."""
    if kind in NOT_FETCHED:
        return ChildInput(source["name"], target, source)
    location = source["location"]
    if location not in fetched:
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched[location] = storage.fetch(location, target)
    return ChildInput(source["name"], fetched[location], source)


def _files_of(stored: list[StoredFile], relative: str) -> list[StoredFile]:
    """The stored files of one output, named relative to it."""
    whole = [StoredFile(Path(f.name).name, f.bytes, f.sha256) for f in stored if f.name == relative]
    prefix = f"{relative}/"
    inside = [f for f in stored if f.name.startswith(prefix)]
    return whole or [StoredFile(f.name.removeprefix(prefix), f.bytes, f.sha256) for f in inside]


def _lineage(claimed: ClaimedRun) -> list[dict[str, Any]]:
    return [
        {"name": role, "kind": source["kind"], "id": source["id"], "sha256": source["sha256"]}
        for role, sources in claimed.inputs.items()
        for source in sources
    ]
