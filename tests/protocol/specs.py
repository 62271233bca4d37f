"""Small jobs that share stages."""

from collections.abc import Callable
from typing import Any

Nodes = list[dict[str, Any]]
Spec = Callable[[str, str], Nodes]


def short(model: str, dataset: str) -> Nodes:
    """Two stages; all other jobs share them."""
    return [
        {"name": "rows", "kind": "hold_out", "inputs": {"data": dataset}},
        {"name": "sft", "kind": "sft", "inputs": {"policy": model, "data": "rows"}},
    ]


def scored(model: str, dataset: str) -> Nodes:
    """A chain up to the split."""
    return [
        short(model, dataset)[0],
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": model, "data": "rows"}},
        {
            "name": "gaps",
            "kind": "score",
            "scheme": "in_sample",
            "inputs": {"reward_models": ["rm"], "data": "rows"},
        },
        {"name": "parts", "kind": "split", "threshold": 1.0, "inputs": {"scores": "gaps", "data": "rows"}},
    ]


def joined(model: str, dataset: str) -> Nodes:
    """Two branches and the stage that needs both."""
    reads = {"policy": "sft", "reference": "sft", "data": "parts.easy"}
    return [
        *scored(model, dataset),
        short(model, dataset)[1],
        {"name": "first", "kind": "dpo", "inputs": reads},
    ]


def tuned(model: str, dataset: str) -> Nodes:
    """One more training of a model."""
    return short(model, dataset)


ALL: tuple[Spec, ...] = (short, scored, joined)
