"""Explicit stages that tests send."""

from typing import Any

Nodes = list[dict[str, Any]]


def mpo_nodes(model: str, dataset: str) -> Nodes:
    """A small curriculum under names of its own."""
    return [
        {"name": "rows", "kind": "hold_out", "inputs": {"data": dataset}},
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": model, "data": "rows"}},
        {
            "name": "gaps",
            "kind": "score",
            "scheme": "in_sample",
            "inputs": {"reward_models": ["rm"], "data": "rows"},
        },
        {"name": "parts", "kind": "split", "threshold": 1.0, "inputs": {"scores": "gaps", "data": "rows"}},
        {
            "name": "first",
            "kind": "dpo",
            "inputs": {"policy": model, "reference": model, "data": "parts.easy"},
        },
        {
            "name": "second",
            "kind": "ppo",
            "inputs": {
                "policy": "first",
                "reference": "first",
                "reward_model": "rm",
                "prompts": "parts.difficult",
            },
        },
    ]


def node(nodes: Nodes, name: str) -> dict[str, Any]:
    """The stage of this name."""
    return next(one for one in nodes if one["name"] == name)
