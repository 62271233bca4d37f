"""The networks that a stage holds at once, as numbers of fp32. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, SFTStage
from mpo.estimates_shape import ModelShape
from mpo.stage_edges import Makers, adapter_over, base_under
from mpo.stage_graph import PlannedStage
from mpo.training_config import LoRAConfig, TrainingConfig

COMPARED = ("reference", "sft", "reward_model")
"""Roles of `ppo` that are read beside its policy."""


LAYERS_PUT_TOGETHER = 2
"""Of weights in shards: the layer that runs, and the one that is fetched for when it is through."""


@dataclass(frozen=True)
class AdaptedNetworks:
    """What `mpo/ppo/adapted.py` loads. models: whole ones, the base among them; trained, frozen: adapters."""

    models: int
    trained: Sequence[LoRAConfig]
    frozen: Sequence[LoRAConfig]


def network_numbers(
    stage: PlannedStage, config: TrainingConfig, shape: ModelShape, plan: Sequence[PlannedStage] = ()
) -> int:
    """Numbers of weights, of gradients and of AdamW's two moments.

    plan: stages that tell which models are adapters; a model that none of them makes counts as a whole one.
    """
    whole, lora = shape.parameters, config.lora
    trained = shape.adapters(lora) if lora is not None else whole
    if isinstance(config, PPOStage):
        if lora is not None:
            return _adapted_numbers(adapted_networks(stage, config, lora, plan), shape)
        networks = 2 if config.critic == "separate" else 1
        others = 1 + ("sft" in stage.inputs) + networks  # reference, SFT, reward model, critic
        return whole * (1 + others) + 3 * networks * trained
    if isinstance(config, SFTStage | RewardModelStage | DPOStage):
        # At its beginning or its end a stage holds two models: one is made from the other, or merged into it.
        return max(2 * whole, whole + 3 * trained + (trained if lora is not None else 0))
    return 2 * whole if isinstance(config, EvaluateStage) else whole


def sharded_numbers(shape: ModelShape, ranks: int) -> float:
    """The same of a training whose weights lie in shards, on one rank: its part, and what is put together
    for the time (`mpo/sharding.py`), each with its gradient.

    That is a layer after another, and from the first pass to the end of the backward one whatever is in no
    layer, embeddings for the most part.
    """
    layers = shape.layers * shape.a_layer()
    together = shape.parameters - layers + min(shape.layers, LAYERS_PUT_TOGETHER) * shape.a_layer()
    return 4 * shape.parameters / ranks + 2 * together


def adapted_networks(
    stage: PlannedStage, config: PPOStage, lora: LoRAConfig, plan: Sequence[PlannedStage] = ()
) -> AdaptedNetworks:
    """The networks of a PPO training by adapters: of the policy's base, those that lie over it are adapters,
    and those that are it are it; each other one is a whole model beside it."""
    makers: Makers = {before.name: before for before in plan}
    base, models, critic = base_under(stage, makers), 1, lora
    frozen: list[LoRAConfig] = []
    for role in COMPARED:
        for source in stage.inputs.get(role, ()):
            adapter = adapter_over(base, source, makers)
            if adapter is not None:
                frozen.append(adapter)
                critic = adapter if role == "reward_model" else critic  # it starts as a copy
            elif source != base or role == "reward_model":
                models += 1
            elif role == "reference" and config.ema_reference is not None:
                frozen.append(lora)
    return AdaptedNetworks(models, [lora, critic] if config.critic == "separate" else [lora], frozen)


def _adapted_numbers(networks: AdaptedNetworks, shape: ModelShape) -> int:
    trained = sum(map(shape.adapters, networks.trained))
    return networks.models * shape.parameters + 4 * trained + sum(map(shape.adapters, networks.frozen))
