"""Keys of stages and leaves: what a result depends on, hashed. Torch-free."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mpo.training_config import StageConfig

PARSER_REVISION = 1
"""Raised by hand when the same uploaded bytes would give other canonical rows."""

InputKey = tuple[str, str]
"""(key of the stage or leaf, output name)."""


def canonical_json(value: object) -> bytes:
    """The one spelling of a value: sorted keys, no spaces, UTF-8; raises ValueError on NaN and infinities."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def result_config(config: StageConfig) -> dict[str, Any]:
    """The configuration without the fields that cannot change a result."""
    neutral = {
        name
        for name, field in type(config).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("neutral")
    }
    return config.model_dump(mode="json", exclude=neutral | config.unread)


def stage_key(config: StageConfig, inputs: Mapping[str, InputKey | Sequence[InputKey]], seed: int) -> str:
    """SHA-256, in hex, of everything that a stage's result depends on.

    inputs: role -> (key, output), or a list of them where the role takes several, in order.
    """
    resolved = result_config(config)
    return _digest(
        {
            "kind": resolved["kind"],
            "revision": config.revision,
            "config": resolved,
            "inputs": inputs,
            "seed": seed,
        }
    )


def dataset_key(sha256: str, kind: str, max_bad_rows: int) -> str:
    """Leaf key of a dataset: known while its rows are still being validated."""
    return _digest(
        {
            "dataset": sha256,
            "kind": kind,
            "max_bad_rows": max_bad_rows,
            "parser": PARSER_REVISION,
        }
    )
