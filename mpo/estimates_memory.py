"""How much memory a stage needs at its peak, from the shapes of its models. Torch-free.

Everything is computed in fp32, as `mpo/policies.py` loads it. What is kept for the backward pass is counted
for a decoder with gated layers and an attention that keeps no scores; other models keep more or less.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, SFTStage
from mpo.errors import UnusableModel
from mpo.estimates_work import DECODED_TOGETHER, Longest
from mpo.lengths import text_settings
from mpo.plan import PlannedStage
from mpo.training_config import LoRAConfig, TrainingConfig

NUMBER = 4
"""Bytes of a number in fp32."""

PROCESS_BYTES = 420 * 2**20
"""What a process holds that has imported torch and transformers and loaded no model."""

BARE_PROCESS_BYTES = 110 * 2**20
"""What a process holds that has imported neither, with some rows."""

LOGITS_AT_ONCE, ROWS_AT_ONCE = 2**28, 32
"""As `mpo/batches.py: rows_at_once`."""

REWARD_TOKENS_AT_ONCE = 2**13
"""As `mpo/reward_model/objective.py`."""

LOGITS_KEPT = 4
"""Copies of the logits at the peak of a backward pass: scaled, log-softmax, and the gradients of both."""

LOGITS_READ = 3
"""Copies of the logits at the peak of a pass without gradients."""

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What comes of a config.json or a file that is not what its name says."""

EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "score")


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on. matrices: (out, in) of the linear layers of the backbone, by name.

    width: of the hidden state; inner: of a layer's feed-forward part; kv_width: of its keys, all heads
    together.
    """

    parameters: int
    matrices: Mapping[str, tuple[int, int]]
    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int

    def adapters(self, lora: LoRAConfig) -> int:
        """Numbers of the adapters over its linear layers."""
        named = lora.target_modules
        return sum(
            lora.rank * sum(shape)
            for name, shape in self.matrices.items()
            if named is None or name.removesuffix(".weight").rpartition(".")[2] in named
        )

    def kept_a_token(self) -> int:
        """Numbers that a pass keeps for its backward pass, a token."""
        return self.layers * (9 * self.width + 4 * self.kv_width + 4 * self.inner) + 4 * self.width

    def passing_a_token(self) -> int:
        """Numbers that a pass without gradients holds at once, a token."""
        return 6 * self.width + 2 * self.kv_width + 3 * self.inner


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in a folder, from config.json and the headers of its safetensors.

    Raises UnusableModel where these do not tell it.
    """
    try:
        return _shape(text_settings(folder / "config.json"), _weights(folder))
    except (*UNREADABLE, struct.error) as error:
        raise UnusableModel(f"The model's folder does not tell its shape: {error!r}") from error


def _shape(settings: Mapping[str, Any], files: Sequence[Path]) -> ModelShape:
    shapes = [shape for path in files for shape in _header(path).items()]
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
    )


def _weights(folder: Path) -> list[Path]:
    """The files that from_pretrained reads: a folder may hold the same weights in another form too."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("model*.safetensors"))


def _header(path: Path) -> dict[str, Sequence[int]]:
    """Shapes of the tensors in a file, from the JSON that it begins with."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def stage_memory(stage: PlannedStage, shape: ModelShape | None = None, longest: Longest | None = None) -> int:
    """Bytes that a stage needs at its peak, the process itself included: weights of all its networks,
    gradients, optimizer, and the largest pass. shape, longest: None where the stage runs no model."""
    config = stage.config
    if not isinstance(config, TrainingConfig):
        return BARE_PROCESS_BYTES
    assert shape is not None, "a stage that runs a model has a shape"
    assert longest is not None, "a stage that runs a model has a longest row"
    passing = _pass(stage, config, shape, longest)
    if isinstance(config, PPOStage | EvaluateStage):
        passing = max(passing, _decoding(config, shape, longest))
    return PROCESS_BYTES + NUMBER * (_networks(stage, config, shape) + passing)


def _networks(stage: PlannedStage, config: TrainingConfig, shape: ModelShape) -> int:
    """Numbers of weights, of gradients and of AdamW's two moments."""
    whole, lora = shape.parameters, config.lora
    trained = shape.adapters(lora) if lora is not None else whole
    if isinstance(config, PPOStage):
        networks = 2 if config.critic == "separate" else 1
        others = 1 + ("sft" in stage.inputs) + networks  # reference, SFT, reward model, critic
        # Adapters of one base share it; a network of a reward model has one of its own.
        weights = whole * 2 if lora is not None else whole * (1 + others)
        return weights + 3 * networks * trained + (networks + others) * trained * (lora is not None)
    if isinstance(config, SFTStage | RewardModelStage | DPOStage):
        # At its beginning or its end a stage holds two models: one is made from the other, or merged into it.
        return max(2 * whole, whole + 3 * trained + (trained if lora is not None else 0))
    return 2 * whole if isinstance(config, EvaluateStage) else whole


def _pass(stage: PlannedStage, config: TrainingConfig, shape: ModelShape, longest: Longest) -> int:
    """Numbers that the largest pass through a network holds."""
    by_logits = max(1, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // max(1, longest.row * shape.vocabulary)))
    response = (longest.response + 1) * shape.vocabulary
    if isinstance(config, SFTStage):
        rows, logits = min(config.batch_pairs, by_logits), LOGITS_KEPT * response
    elif isinstance(config, DPOStage):
        rows, logits = 2 * min(config.batch_pairs, max(1, by_logits // 2)), LOGITS_KEPT * response
    elif isinstance(config, RewardModelStage):
        pairs = max(1, min(ROWS_AT_ONCE, REWARD_TOKENS_AT_ONCE // (2 * max(1, longest.row))))
        rows, logits = 2 * min(config.batch_pairs, pairs), 0
    elif isinstance(config, PPOStage):
        rows = min(-(-config.rollout_prompts // config.mini_batches), by_logits)
        logits = LOGITS_KEPT * response
    else:
        rows = ROWS_AT_ONCE
        response_logits = 2 * LOGITS_READ * response * by_logits if isinstance(config, EvaluateStage) else 0
        return max(rows * longest.row * shape.passing_a_token(), response_logits)
    return rows * (longest.row * shape.kept_a_token() + logits)


def _decoding(config: PPOStage | EvaluateStage, shape: ModelShape, longest: Longest) -> int:
    """Numbers held while sampling: keys and values, the prompts' first pass, probabilities in float64."""
    sequences = DECODED_TOGETHER
    if isinstance(config, PPOStage):
        sequences = min(sequences, config.rollout_prompts)
    else:
        sequences = min(sequences, config.prompts * config.samples)
    cache = 2 * shape.layers * shape.kv_width * longest.row
    # The cache grows by copies: beside a layer's old keys and values stand its new ones.
    cache += 2 * shape.kv_width * longest.row
    return sequences * (cache + longest.prompt * shape.passing_a_token() + 8 * shape.vocabulary)
