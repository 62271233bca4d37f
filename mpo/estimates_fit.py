"""The setting nearest to a stage's own with which it fits into some memory. Torch-free."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from mpo.config import EvaluateStage, PPOStage, ScoreStage
from mpo.training_config import LoRAConfig, TrainingConfig

Changes = Mapping[str, Any]
C = TypeVar("C", bound=TrainingConfig)

SHRINK = 7 / 8
SHORTEST = 16
"""Tokens below which no length is proposed."""


def nearest_fit(config: C, memory_of: Callable[[C], int], limit: int) -> tuple[Changes, int] | None:
    """What to change for the memory to come to `limit` bytes at most, and what it comes to; None where
    nothing that is tried does.

    Tried first is what changes no result, then what changes least: smaller steps, shorter texts, adapters in
    place of every weight. memory_of: bytes of a configuration.
    """
    for changes in _candidates(config):
        memory = memory_of(config.model_copy(update=dict(changes)))
        if memory <= limit:
            return written(changes), memory
    return None


def written(changes: Changes) -> Changes:
    """As a request writes them."""
    return {name: value if isinstance(value, int) else value.model_dump() for name, value in changes.items()}


def _candidates(config: TrainingConfig) -> Iterator[Changes]:
    if isinstance(config, ScoreStage | EvaluateStage):
        yield from _shorter(config)
        return
    free: Changes = {"gradient_checkpointing": True}
    yield free
    for fewer in (*_smaller_steps(config), *_shorter(config)):
        yield fewer
        yield {**free, **fewer}
    if config.lora is None:
        adapters: Changes = {**free, "lora": LoRAConfig()}
        yield adapters
        for fewer in (*_smaller_steps(config), *_shorter(config)):
            yield {**adapters, **fewer}


def _smaller_steps(config: TrainingConfig) -> Iterator[Changes]:
    if isinstance(config, PPOStage):
        parts = config.mini_batches
        while parts < config.rollout_prompts:
            parts = min(2 * parts, config.rollout_prompts)
            yield {"mini_batches": parts}
        return
    pairs = config.batch_pairs
    while pairs > 1:
        pairs //= 2
        yield {"batch_pairs": pairs}


def _shorter(config: TrainingConfig) -> Iterator[Changes]:
    """All lengths that the stage reads, together."""
    read = ["max_prompt_tokens"]
    read += ["max_new_tokens"] if isinstance(config, PPOStage) else ["max_response_tokens"]
    read += ["max_new_tokens"] if isinstance(config, EvaluateStage) else []
    lengths = {name: int(getattr(config, name)) for name in read if getattr(config, name)}
    while any(length > SHORTEST for length in lengths.values()):
        lengths = {name: max(min(SHORTEST, n), int(n * SHRINK)) for name, n in lengths.items()}
        yield dict(lengths)


def gib(count: int) -> str:
    """Bytes as a sentence names them."""
    return f"{count / 2**30:.2f} GiB"


def worded(changes: Changes) -> str:
    """As a sentence names them."""
    return " and ".join(f"{name} {_worded(value)}" for name, value in changes.items())


def _worded(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"of rank {value['rank']}" if isinstance(value, dict) else str(value)
