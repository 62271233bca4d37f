"""Keys of stages and leaves: what a result depends on, hashed. Torch-free."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mpo.training_config import StageConfig

PARSER_REVISION = 2
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
    """The configuration without the fields that cannot change a result, or are keyed only where they are set
    and have their default."""
    kind = type(config)
    left_out = _marked(kind, "neutral") | config.unread
    for name in _marked(kind, "keyed_where_set"):
        if getattr(config, name) == kind.model_fields[name].default:
            left_out |= {name}
    return config.model_dump(mode="json", exclude=set(left_out))


@cache
def _marked(kind: type[StageConfig], mark: str) -> frozenset[str]:
    return frozenset(
        name
        for name, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(mark)
    )


@dataclass(frozen=True)
class KeyParts:
    """Of what is hashed, that which neither inputs nor seed change: canonical JSON around their places."""

    before_inputs: bytes
    before_seed: bytes


def key_parts(config: StageConfig) -> KeyParts:
    """Spelt once for all keys of one configuration; members in the order that canonical JSON wants."""
    resolved = result_config(config)
    kind, revision = canonical_json(resolved["kind"]), canonical_json(config.revision)
    return KeyParts(
        b'{"config":' + canonical_json(resolved) + b',"inputs":',
        b',"kind":' + kind + b',"revision":' + revision + b',"seed":',
    )


def stage_key(
    config: StageConfig | KeyParts, inputs: Mapping[str, InputKey | Sequence[InputKey]], seed: int
) -> str:
    """SHA-256, in hex, of everything that a stage's result depends on.

    inputs: role -> (key, output), or a list of them where the role takes several, in order.
    """
    parts = config if isinstance(config, KeyParts) else key_parts(config)
    text = (parts.before_inputs, canonical_json(inputs), parts.before_seed, canonical_json(seed), b"}")
    return hashlib.sha256(b"".join(text)).hexdigest()


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
