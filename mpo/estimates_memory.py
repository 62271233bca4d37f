"""How much memory a stage needs at its peak, from the shapes of its models. Torch-free.

Weights are in fp32, as `mpo/policies.py` loads them; passes of trainings in fp32 or bf16.
"""

from collections.abc import Sequence

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, SFTStage
from mpo.estimates_networks import network_numbers
from mpo.estimates_passes import Device, read_numbers, trained_numbers
from mpo.estimates_shape import ModelShape
from mpo.estimates_work import DECODED_TOGETHER, Longest
from mpo.plan import PlannedStage
from mpo.training_config import TrainingConfig

NUMBER = 4
"""Bytes of a number in fp32."""

PROCESS_BYTES = 450 * 2**20
"""What a process holds that has imported torch and transformers and loaded no model."""

FIRST_USE_BYTES = 50 * 2**20
"""What it holds more once it has run one, however small: libraries' code, tokenizer, rows."""

ADAPTERS_BYTES = 35 * 2**20
"""What peft's own imports take, of which the first adapter is the occasion."""

BARE_PROCESS_BYTES = 110 * 2**20
"""What a process holds that has imported neither, with some rows."""

HELD = {"cpu": 1.4, "cuda": 1.1}
"""What a training's passes hold of memory over what is alive in them. On a CPU glibc keeps what was freed
between gradients that stay, and passes of other lengths do not fit into it (measured, docs/estimates.md). On
a GPU torch rounds and keeps blocks (assumed)."""


def stage_memory(
    stage: PlannedStage,
    shape: ModelShape | None = None,
    longest: Longest | None = None,
    device: Device = "cpu",
    plan: Sequence[PlannedStage] = (),
) -> int:
    """Bytes that a stage needs at its peak, the process itself included: weights of all its networks,
    gradients, optimizer, and the largest pass.

    shape, longest: None where the stage runs no model. plan: the stages that make what it reads, as far as
    they are known: of adapters over one base only that is whole.
    """
    config = stage.config
    if not isinstance(config, TrainingConfig):
        return BARE_PROCESS_BYTES
    assert shape is not None, "a stage that runs a model has a shape"
    assert longest is not None, "a stage that runs a model has a longest row"
    if isinstance(config, SFTStage | RewardModelStage | DPOStage | PPOStage):
        passing = HELD[device] * trained_numbers(config, shape, longest, device)
    else:
        passing = read_numbers(config, shape, longest, device)
    if isinstance(config, EvaluateStage):
        passing = max(passing, _decoding(config, shape, longest))
    if isinstance(config, PPOStage):
        # On a CPU what one phase has freed does not serve the other: seen in the phases' own peaks.
        together = sum if device == "cpu" else max
        passing = together((passing, float(_decoding(config, shape, longest))))
    numbers = network_numbers(stage, config, shape, plan) + round(passing)
    code = PROCESS_BYTES + FIRST_USE_BYTES + (ADAPTERS_BYTES if config.lora is not None else 0)
    return code + NUMBER * numbers


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
