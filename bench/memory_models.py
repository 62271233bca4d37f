"""The models and rows of `bench.memory`."""

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mpo.policies import new_reward_model, save_model
from mpo.records import PreferencePair, write_rows

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"
SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {},
    "9M": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 32,
        "vocab_size": 8192,
        "max_position_embeddings": 1024,
    },
    "44M": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 16_000,
        "max_position_embeddings": 1024,
    },
}
"""What differs from the shipped `tiny`, by name; the names say how many weights there are."""


def write_models(folder: Path, names: Sequence[str]) -> None:
    """A policy of each name, and a reward model on its backbone."""
    for name in names:
        _write_policy(folder / name, SHAPES[name])
        save_model(new_reward_model(folder / name, 0), folder / name, folder / f"{name}-scores")


def _write_policy(folder: Path, shape: Mapping[str, Any]) -> None:
    if not shape:
        shutil.copytree(TINY, folder)
        return
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(TINY)
    for field, value in shape.items():
        setattr(config, field, value)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)


def write_rows_of(pairs: Path, count: int, target: Path) -> None:
    """The file's first pairs as a stage reads them."""
    with gzip.open(pairs, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, count)]
    write_rows(
        target,
        [
            PreferencePair(str(number), row["prompt"], row["chosen"], row["rejected"])
            for number, row in enumerate(rows)
        ],
    )
