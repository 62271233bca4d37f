"""Stages that need more memory than there is, and the nearest setting that does not. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpo.config import Stage
from mpo.estimates_fit import gib, nearest_fit, worded
from mpo.training_config import TrainingConfig


@dataclass(frozen=True)
class Excess:
    """How far a stage is above the limit, in bytes, and the nearest changes with which it is not."""

    memory_bytes: int
    limit_bytes: int
    nearest: Mapping[str, Any] | None
    nearest_bytes: int | None

    @property
    def detail(self) -> str:
        """For whoever has to choose."""
        needs = (
            f"This stage is estimated to need {gib(self.memory_bytes)} of memory, and trainings have "
            f"{gib(self.limit_bytes)} here"
        )
        if self.nearest is None or self.nearest_bytes is None:
            return f"{needs}. No other batch or length and no adapters make it fit: take a smaller model"
        return f"{needs}. The nearest setting that fits is {worded(self.nearest)}: {gib(self.nearest_bytes)}"


def find_excess(config: Stage, limit: int, at_least: Callable[[Stage], int]) -> Excess | None:
    """The excess of a stage over the limit; None where there is none, or no limit (0).

    at_least: bytes that a stage needs if its model reads packed rows. Whether it does is tried when it is
    loaded, so that more is no reason to refuse.
    """
    if not limit or not isinstance(config, TrainingConfig) or (memory := at_least(config)) <= limit:
        return None
    found = nearest_fit(config, at_least, limit)
    return Excess(memory, limit, *(found or (None, None)))


def told_of_padding(memory: int, limit: int) -> list[str]:
    """What a dry run says where memory is above the limit only if the model does not read packed rows."""
    if not limit or memory <= limit:
        return []
    return [
        f"If this model turns out to need padded rows, this stage needs {gib(memory)} of memory, and "
        f"trainings have {gib(limit)} here"
    ]


def told_of_lengths(memory: int, limit: int) -> list[str]:
    """What a dry run says where memory is above the limit only as far as anybody knows: that of the longest
    texts that the stage allows. Nothing is refused on it, as the rows may be much shorter."""
    if not limit or memory <= limit:
        return []
    return [
        f"With the longest texts that it allows this stage would need {gib(memory)} of memory, and "
        f"trainings have {gib(limit)} here: whether it fits is known once its rows are counted"
    ]
