"""What a stage is given, and how it tells the outside what it does. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mpo.config import Stage
from mpo.token_cache import TokenCache


@dataclass(frozen=True)
class StageInput:
    """One input of a stage: a local file or folder, under the name that people know it by.

    name is a stage's name (`sft`), or a base model's; path is what that stage's output is on disk
    (`mpo.plan.OUTPUTS`), or a model folder, or a dataset's canonical Parquet file.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class StageTask:
    """Everything that a stage's result depends on, and where the result goes.

    output: an existing, empty folder; the stage writes its outputs (`mpo.plan.OUTPUTS`) and `summary.json`
    there. resume: a folder once passed to `Reporter.checkpoint` by the same stage, or None. tokens: where
    stages of this machine share token ids; the result does not depend on it.
    """

    config: Stage
    inputs: Mapping[str, tuple[StageInput, ...]]
    output: Path
    seed: int
    resume: Path | None = None
    tokens: TokenCache | None = None

    def one(self, role: str) -> StageInput:
        """The single input of a role; raises KeyError where the plan gave none."""
        return self.inputs[role][0]


class Reporter(Protocol):
    """How a running stage reports. Calls are cheap: a stage calls `progress` at every step."""

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Step `step` of `total_steps` (in units of the stage's choice) has ended with these metrics."""
        ...

    def warn(self, message: str) -> None:
        """Something that a person should read, though the stage goes on."""
        ...

    def checkpoint_due(self) -> bool:
        """Whether `checkpoint_seconds` have passed since the last checkpoint of this attempt."""
        ...

    def checkpoint(self, folder: Path, step: int) -> None:
        """Hand over a complete folder from which `StageTask.resume` can go on; returns once it is kept."""
        ...

    def should_stop(self) -> bool:
        """Whether to save a checkpoint and raise `mpo.errors.StageInterrupted` now."""
        ...


@dataclass(frozen=True)
class SilentReporter:
    """Tells nobody and keeps nothing: of a process that takes part in what another reports, for example.

    stop: whether it was asked to stop.
    """

    stop: Callable[[], bool] = lambda: False

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Not told."""

    def warn(self, message: str) -> None:
        """Not told."""

    def checkpoint_due(self) -> bool:
        """Never."""
        return False

    def checkpoint(self, folder: Path, step: int) -> None:
        """Not kept: DPO hands over one when its reference has been asked."""

    def should_stop(self) -> bool:
        """As it was asked."""
        return self.stop()
