"""Lengths that a configuration leaves open, set from the model's context. Torch-free."""

from typing import TypeVar

from mpo.config import EvaluateStage, PPOStage
from mpo.training_config import StageConfig, TrainingConfig

S = TypeVar("S", bound=StageConfig)


def resolve_lengths(config: S, context_tokens: int) -> S:
    """The same configuration with every length that was left open set from the model's context, in tokens.

    Raises ValueError where prompt and response, terminator included, cannot fit the context together.
    """
    if not isinstance(config, TrainingConfig):
        return config
    lengths = {
        "max_prompt_tokens": config.max_prompt_tokens or max(1, min(1024, context_tokens // 2)),
        "max_response_tokens": config.max_response_tokens or max(1, min(512, context_tokens // 4)),
    }
    if isinstance(config, PPOStage | EvaluateStage):
        lengths["max_new_tokens"] = config.max_new_tokens or max(1, min(128, context_tokens // 4))
    response = lengths.get("max_new_tokens", lengths["max_response_tokens"])
    longest = lengths["max_prompt_tokens"] + max(response, lengths["max_response_tokens"]) + 1
    if longest > context_tokens:
        raise ValueError(
            f"max_prompt_tokens, the longest response and its terminator come to {longest} tokens; "
            f"the model's context is {context_tokens}"
        )
    return config.model_copy(update=lengths)
