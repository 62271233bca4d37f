"""The shape of a model, from its folder: what memory and time depend on. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpo.errors import UnusableModel
from mpo.lengths import text_settings
from mpo.safetensors_headers import tensor_shapes
from mpo.training_config import LoRAConfig

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What comes of a config.json or a file that is not what its name says."""

EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "score")

PACKED_FAMILIES = frozenset({"llama", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2", "mistral", "olmo"})
"""Families of which tests show that they read packed rows (`tests/mpo/test_packed_models.py`). Others may: it
is tried when they are loaded; until then they are taken to need padded rows, which is more."""


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on. matrices: (out, in) of the linear layers of the backbone, by name.

    width: of the hidden state; inner: of a layer's feed-forward part; kv_width: of its keys, all heads
    together; query_width: of its queries, likewise (0: as the hidden state). packs: whether it reads packed
    rows. heads: of queries.
    """

    parameters: int
    matrices: Mapping[str, tuple[int, int]]
    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int
    query_width: int = 0
    packs: bool = True
    heads: int = 1

    @property
    def attended(self) -> int:
        """Width of queries, and of what comes of attention."""
        return self.query_width or self.width

    def adapted(self, lora: LoRAConfig) -> list[tuple[int, int]]:
        """The matrices that adapters stand beside."""
        named = lora.target_modules
        return [
            shape
            for name, shape in self.matrices.items()
            if named is None or name.removesuffix(".weight").rpartition(".")[2] in named
        ]

    def adapters(self, lora: LoRAConfig) -> int:
        """Numbers of the adapters over its linear layers."""
        return sum(lora.rank * sum(shape) for shape in self.adapted(lora))

    def kept_a_layer(self) -> int:
        """Numbers of a token that a layer keeps for its backward pass: both norms and what they give, the
        query, key and value as attention reads them, what comes of it, sequence by sequence and in one, and
        the four of the gated part."""
        return 4 * self.width + 5 * self.attended + 4 * self.inner

    def kept_a_layer_by_blocks(self) -> int:
        """The same, but for the weights, where `mpo/blocked_attention.py` attends: keys and values are kept
        once, not once for each head of queries, and its result is in one."""
        return self.kept_a_layer() - 2 * (self.attended - self.kv_width) - self.attended

    def kept_a_layer_in_bf16(self) -> float:
        """The same where autocast computes in bf16, in numbers of fp32: half, but for what the norms keep."""
        return self.kept_a_layer() / 2 + self.width

    def a_layer(self) -> float:
        """Numbers of a layer's matrices."""
        return sum(math.prod(shape) for shape in self.matrices.values()) / self.layers

    def cast_a_layer(self) -> float:
        """Numbers, of fp32, of a layer's matrices in bf16, which its backward pass reads once more."""
        return self.a_layer() / 2

    def passing_a_token(self) -> int:
        """Numbers that a pass without gradients holds at once, a token."""
        return 6 * self.width + 2 * self.kv_width + 3 * self.inner


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in a folder, from config.json and the headers of its safetensors.

    Raises UnusableModel where these do not tell it.
    """
    try:
        return _shape(text_settings(folder / "config.json"), _weights(folder))
    except UNREADABLE as error:
        raise UnusableModel(f"The model's folder does not tell its shape: {error!r}") from error


def _shape(settings: Mapping[str, Any], files: Sequence[Path]) -> ModelShape:
    shapes = [shape for path in files for shape in tensor_shapes(path).items()]
    if not shapes:
        raise FileNotFoundError("no safetensors")
    width = int(settings.get("hidden_size") or settings["n_embd"])
    heads = int(settings.get("num_attention_heads") or settings["n_head"])
    head = int(settings.get("head_dim") or width // heads)
    return ModelShape(
        parameters=sum(math.prod(shape) for _, shape in shapes),
        matrices={
            name: (shape[0], shape[1])
            for name, shape in shapes
            if len(shape) == 2 and not any(word in name for word in EMBEDDINGS)
        },
        layers=int(settings.get("num_hidden_layers") or settings["n_layer"]),
        width=width,
        inner=int(settings.get("intermediate_size") or settings.get("n_inner") or 4 * width),
        kv_width=head * int(settings.get("num_key_value_heads") or heads),
        vocabulary=int(settings["vocab_size"]),
        query_width=head * heads,
        packs=settings.get("model_type") in PACKED_FAMILIES,
        heads=heads,
    )


def _weights(folder: Path) -> list[Path]:
    """The files that from_pretrained reads: a folder may hold the same weights in another form too."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("model*.safetensors"))
