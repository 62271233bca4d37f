"""How much memory a stage needs at its peak, from the shapes of its models. Torch-free.

Weights are in fp32, as `mpo/policies.py` loads them; passes of trainings in fp32 or bf16.
"""

from collections.abc import Sequence

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, SFTStage
from mpo.estimates_machine import ONE_CPU, Machine
from mpo.estimates_networks import network_numbers, sharded_numbers
from mpo.estimates_passes import read_numbers, trained_numbers
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
    machine: Machine = ONE_CPU,
    plan: Sequence[PlannedStage] = (),
) -> int:
    """Bytes that a stage needs at its peak, the process itself included: weights of all its networks,
    gradients, optimizer, and the largest pass. Of several ranks on a CPU all together, on GPUs each.

    shape, longest: None where the stage runs no model. plan: the stages that make what it reads, as far as
    they are known: of adapters over one base only that is whole.
    """
    config = stage.config
    if not isinstance(config, TrainingConfig):
        return BARE_PROCESS_BYTES
    assert shape is not None, "a stage that runs a model has a shape"
    assert longest is not None, "a stage that runs a model has a longest row"
    passing = _passing(config, shape, longest, machine)
    if machine.is_sharding(config):
        numbers = _in_shards(config, shape, longest, machine, passing)
    else:
        numbers = network_numbers(stage, config, shape, plan) + passing
    code = PROCESS_BYTES + FIRST_USE_BYTES + (ADAPTERS_BYTES if config.lora is not None else 0)
    processes = machine.ranks_of(config) if machine.device == "cpu" else 1
    return processes * (code + NUMBER * round(numbers))


def _passing(config: TrainingConfig, shape: ModelShape, longest: Longest, machine: Machine) -> float:
    """Numbers that one rank holds beside networks, at its largest pass or while sampling."""
    device, ranks = machine.device, machine.ranks_of(config)
    if isinstance(config, SFTStage | RewardModelStage | DPOStage | PPOStage):
        passing = HELD[device] * trained_numbers(config, shape, longest, device, ranks)
    else:
        passing = read_numbers(config, shape, longest, device)
    if isinstance(config, EvaluateStage):
        passing = max(passing, _decoding(config, shape, longest))
    if isinstance(config, PPOStage):
        # On a CPU what one phase has freed does not serve the other: seen in the phases' own peaks.
        together = sum if device == "cpu" else max
        passing = together((passing, float(_decoding(config, shape, longest, ranks))))
    return passing


def _in_shards(
    config: TrainingConfig, shape: ModelShape, longest: Longest, machine: Machine, passing: float
) -> float:
    """Numbers that one rank holds, of networks too, where the weights in training lie in shards.

    The model is whole where it runs before and after (DPO's reference, a reward model's offset), and waits
    whole in the host's memory meanwhile, where the copy that is sharded was whole as well.
    """
    host = machine.device == "cpu"
    running = (2 if host else 1) * shape.parameters + read_numbers(config, shape, longest, machine.device)
    training = sharded_numbers(shape, machine.ranks) + passing + (shape.parameters if host else 0)
    return max(running, training)


def _decoding(config: PPOStage | EvaluateStage, shape: ModelShape, longest: Longest, ranks: int = 1) -> int:
    """Numbers held while sampling: keys and values, the prompts' first pass, probabilities in float64."""
    sequences = DECODED_TOGETHER
    if isinstance(config, PPOStage):
        sequences = min(sequences, -(-config.rollout_prompts // ranks))
    else:
        sequences = min(sequences, config.prompts * config.samples)
    cache = 2 * shape.layers * shape.kv_width * longest.row
    # The cache grows by copies: beside a layer's old keys and values stand its new ones.
    cache += 2 * shape.kv_width * longest.row
    return sequences * (cache + longest.prompt * shape.passing_a_token() + 8 * shape.vocabulary)
