"""Checkpoints of a running stage: written under a temporary name, synced, then renamed."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpo.reporter import Reporter, StageTask
from mpo.synced import sync, sync_tree

State = Mapping[str, object]
"""Tensors, numbers, strings, None, and lists, tuples and mappings of them; keys are strings or numbers."""
PLAIN = "state"
"""The entry of a file's metadata that holds, as JSON, all but the tensors."""


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
    """Keeps tensors and plain values in one safetensors file, the plain ones in its metadata.

    No two tensors may share memory. Raises TypeError for what is neither, ValueError where two tensors would
    have one name, RuntimeError where they share memory, SafetensorError where the disk does not take them.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_plain(state, "", tensors))
    save_file(tensors, path, {PLAIN: plain})


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` kept, on the CPU; there is no code in such a file.

    Raises FileNotFoundError, SafetensorError, KeyError where the file is of somebody else.
    """
    with safe_open(path, framework="pt") as file:
        plain = json.loads((file.metadata() or {})[PLAIN])
        # Cloned: what is read lies in the mapped file, which goes while the training goes on.
        return dict(_state(plain, lambda name: file.get_tensor(name).clone()))


def _plain(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    """What JSON holds of a value; its tensors are put among `tensors` under their paths in it."""
    if isinstance(value, Tensor):
        if name in tensors:
            raise ValueError(f"Two tensors of a state are called {name}.")
        tensors[name] = _by_itself(value)
        return {"tensor": name}
    if isinstance(value, Mapping):
        # Pairs: JSON's own keys are strings, and an optimizer's are numbers.
        return {"entries": [[key, _plain(each, f"{name}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        items = [_plain(each, f"{name}/{number}", tensors) for number, each in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _state(plain: object, tensor: Callable[[str], Tensor]) -> Any:
    """The value that `_plain` was given."""
    match plain:
        case {"tensor": name}:
            return tensor(str(name))
        case {"entries": entries}:
            return {key: _state(each, tensor) for key, each in entries}
        case {"tuple": items}:
            return tuple(_state(each, tensor) for each in items)
        case list():
            return [_state(each, tensor) for each in plain]
    return plain


def _by_itself(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is part of a larger one: a file holds none of the rest."""
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
