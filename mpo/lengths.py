"""Lengths that a configuration leaves open, set from the model's context. Torch-free."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mpo.config import EvaluateStage, PPOStage
from mpo.training_config import StageConfig, TrainingConfig

S = TypeVar("S", bound=StageConfig)


class LengthsExceedContext(ValueError):
    """Prompt and response do not fit the model's context. field: the largest length that is given."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


def text_settings(config: Path) -> dict[str, Any]:
    """What a config.json says of the text model: the whole of it, or its part for text."""
    document: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return document.get("text_config") or document


def named_context(settings: Mapping[str, Any]) -> int | None:
    """The longest sequence that the text model was made for, in tokens; None where nothing says so."""
    context = settings.get("max_position_embeddings") or settings.get("n_positions")
    return None if context is None else int(context)


def resolve_lengths(config: S, context_tokens: int) -> S:
    """The same configuration with every length that was left open set from the model's context, in tokens.

    Raises LengthsExceedContext where prompt and response, terminator included, cannot fit the context
    together.
    """
    if not isinstance(config, TrainingConfig):
        return config
    lengths = {
        "max_prompt_tokens": config.max_prompt_tokens or max(1, min(1024, context_tokens // 2)),
        "max_response_tokens": config.max_response_tokens or max(1, min(512, context_tokens // 4)),
    }
    if isinstance(config, PPOStage | EvaluateStage):
        lengths["max_new_tokens"] = config.max_new_tokens or max(1, min(128, context_tokens // 4))
    # PPO reads no response of the data: its responses are sampled.
    read = 0 if isinstance(config, PPOStage) else lengths["max_response_tokens"]
    response = max(read, lengths.get("max_new_tokens", 0))
    longest = lengths["max_prompt_tokens"] + response + 1
    if longest > context_tokens:
        given = [name for name in lengths if getattr(config, name) is not None]
        raise LengthsExceedContext(
            f"max_prompt_tokens, the longest response and its terminator come to {longest} tokens; "
            f"the model's context is {context_tokens}",
            field=max(given or lengths, key=lambda name: lengths[name]),
        )
    return config.model_copy(update=lengths)
