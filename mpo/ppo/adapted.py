"""The networks of a PPO training by adapters: one frozen base carries nearly all of them."""

from typing import Any

from transformers import PreTrainedModel

from mpo.adapted_models import (
    AdaptedModel,
    adapted_policy,
    frozen_policy,
    frozen_reward_model,
    reward_model_and_critic,
)
from mpo.adapters import AdaptedBase, base_folder, weights_digest
from mpo.config import PPOStage
from mpo.policies import load_policy, to_training_device
from mpo.ppo.networks import Critic, Networks, ValueHead
from mpo.reporter import StageTask
from mpo.reward_model.score import reward_offset
from mpo.training_config import LoRAConfig

POLICY = "policy"


def load_adapted_networks(task: StageTask, config: PPOStage, lora: LoRAConfig) -> Networks:
    """The task's models as adapters over the base of the policy; what is none of its is whole beside it.

    An adapter starts as a copy of its model's own: the policy's of DPO's, the critic's of the reward model's.
    Raises UnusableModel.
    """
    at = base_folder(task, "policy")
    model = to_training_device(load_policy(at)).eval()
    base = AdaptedBase(model, weights_digest(at))
    policy: Any = adapted_policy(base, POLICY, lora, task.one("policy").path, task.seed)
    scores, critic = _reward_model_and_critic(base, lora, task, config)
    return Networks(
        policy=policy,
        reference=_reference(base, lora, task, config),
        critic=critic,
        reward_model=scores,
        sft=_compared(base, "sft", task) if "sft" in task.inputs else None,
    )


def _reference(base: AdaptedBase, lora: LoRAConfig, task: StageTask, config: PPOStage) -> PreTrainedModel:
    if config.ema_reference is not None and weights_digest(task.one("reference").path) == base.digest:
        # The base itself cannot follow the policy: an adapter that changes nothing yet stands for it.
        base.add("reference", lora, None, task.seed)
        view: Any = AdaptedModel(base, "reference")
        return view
    return _compared(base, "reference", task)


def _compared(base: AdaptedBase, role: str, task: StageTask) -> PreTrainedModel:
    view: Any = frozen_policy(base, role, task.one(role).path)
    return view


def _reward_model_and_critic(
    base: AdaptedBase, lora: LoRAConfig, task: StageTask, config: PPOStage
) -> tuple[PreTrainedModel, Critic | ValueHead]:
    folder = task.one("reward_model").path
    if config.critic == "shared_trunk":
        reward_model: Any = frozen_reward_model(base, folder)
        return reward_model, ValueHead(base.model.config.get_text_config().hidden_size).to(base.model.device)
    network: Any
    reward_model, network = reward_model_and_critic(base, lora, folder, task.seed)
    return reward_model, Critic(network, reward_offset(network))
