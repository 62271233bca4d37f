"""Checkpoints of a running stage: written under a temporary name, synced, then renamed."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mpo.reporter import Reporter, StageTask
from mpo.synced import sync, sync_tree

State = Mapping[str, object]
"""What torch.save keeps and `weights_only` loads: tensors, numbers, strings, and lists and dicts of them."""


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes target when the block ends, whole or not at all.

    What target held before is replaced. A block that raises leaves target as it was.
    """
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_tree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    sync(target.parent)


@contextmanager
def handed_over(task: StageTask, reporter: Reporter, step: int) -> Iterator[Path]:
    """A folder to fill with a checkpoint after `step` steps; the reporter keeps it, then it goes."""
    folder = task.output / f"checkpoint-{step}"
    with complete_folder(folder) as partial:
        yield partial
    reporter.checkpoint(folder, step)
    shutil.rmtree(folder, ignore_errors=True)


def save_state(path: Path, state: State) -> None:
    """Keeps tensors and plain values in one file."""
    torch.save(dict(state), path)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` kept, on the CPU; never runs code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)
