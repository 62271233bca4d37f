"""Memory that was short: how it is known, and what is said of it in the end. Torch-free."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

from mpo.config import Stage
from mpo.errors import MPOError, OutOfMemory
from mpo.estimates_fit import gib, nearest_fit, worded
from mpo.ranks import Ranks
from mpo.reporter import StageTask
from mpo.roles import MODEL_ROLES
from mpo.training_config import TrainingConfig

T = TypeVar("T")

OF_TORCH = "OutOfMemoryError"
OF_ITS_CPU = "DefaultCPUAllocator"
"""On a GPU torch raises an error of its own, on a CPU a RuntimeError that names the allocator."""
LESS = 3 / 4
"""Of what a stage was estimated to need, a setting is proposed that needs so much at most."""


def is_short(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    name_tells = isinstance(error, MemoryError) or type(error).__name__ == OF_TORCH
    return name_tells or (isinstance(error, RuntimeError) and OF_ITS_CPU in str(error))


def if_it_fits(call: Callable[[], T]) -> T | None:
    """What a call returns; None where memory was short."""
    try:
        return call()
    except Exception as error:
        if not is_short(error):
            raise
    return None  # here, where the error is gone: it holds on to the memory of the call


def if_it_fits_all(ranks: Ranks, call: Callable[[], T]) -> T | None:
    """What a call returns here; None on every rank where the memory of any was short."""
    found = if_it_fits(call)
    return found if all(ranks.gather_objects(found is not None)) else None


def out_of_memory(task: StageTask) -> OutOfMemory:
    """The error that ends a stage: what it is estimated to need, and the nearest setting that needs clearly
    less."""
    try:
        return OutOfMemory(f"Memory was short. {_what_would_help(task)}")
    except (MPOError, OSError):  # its model does not tell its shape: there is nothing to estimate by
        return OutOfMemory("Memory was short: shorter texts, smaller steps and lora need less.")


def _what_would_help(task: StageTask) -> str:
    if not isinstance(task.config, TrainingConfig):
        return "The stage runs no model: its dataset is too large for this machine."
    estimated = partial(_estimated, task)
    needed = estimated(task.config)
    needs = f"With rows as long as it allows the stage is estimated to need {gib(needed)}"
    found = nearest_fit(task.config, estimated, round(LESS * needed))
    if found is None:
        return f"{needs}. No other batch or length and no adapters make it clearly less: take a smaller model"
    changes, memory = found
    return f"{needs}. The nearest setting that needs clearly less is {worded(changes)}: {gib(memory)}"


def _estimated(task: StageTask, config: TrainingConfig) -> int:
    """Bytes. Of the rows nothing is asked: whoever has no memory left had better not read a dataset."""
    import torch

    from mpo.estimates_machine import Machine
    from mpo.estimates_memory import stage_memory
    from mpo.estimates_shape import read_shape
    from mpo.estimates_work import longest
    from mpo.stage_graph import PlannedStage, Source

    role = next(role for role in MODEL_ROLES if task.inputs.get(role))
    sources = {role: tuple(Source.model(given.name) for given in each) for role, each in task.inputs.items()}
    stage = PlannedStage("", cast("Stage", config), sources, task.seed)
    machine = Machine("cuda" if torch.cuda.is_available() else "cpu")
    rows = longest(stage, {}, lambda _: None)
    return stage_memory(stage, read_shape(task.inputs[role][0].path), rows, machine)
