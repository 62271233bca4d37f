"""Several models on one frozen base: each is one of its adapters, seen as a model of its own."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from mpo.adapters import HEAD_WEIGHT, AdaptedBase, Adapter, read_adapter, weights_digest
from mpo.policies import (
    load_policy,
    load_reward_model,
    score_head,
    to_training_device,
)
from mpo.training_config import LoRAConfig


class AdaptedModel:
    """The base with one of its adapters, or with none; with a head of its own where it gives rewards.

    Runs like a transformers model. Only one adapter of a base is active at a time, so a loss is to be
    propagated back before another model of the same base runs.
    """

    def __init__(
        self,
        base: AdaptedBase,
        name: str | None,
        config: PreTrainedConfig | None = None,
        score: nn.Linear | None = None,
    ) -> None:
        self.base, self.name, self.score = base, name, score
        self.config = base.model.config if config is None else config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.model.device

    def __call__(self, **inputs: Any) -> Any:
        """The base's forward, with this adapter."""
        self.base.activate(self.name)
        return self.base.model(**inputs)

    def base_model(self, **inputs: Any) -> Any:
        """The backbone's forward, with this adapter."""
        self.base.activate(self.name)
        return self.base.model.base_model(**inputs)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's weights and the head's, under names that are the same for every adapter's."""
        if self.name is not None:
            for path, parameter in self.base.parameters(self.name).items():
                yield path.replace(f".{self.name}.", "."), parameter
        if self.score is not None:
            yield from self.score.named_parameters(prefix="score")


def adapted_policy(base: AdaptedBase, name: str, lora: LoRAConfig, folder: Path, seed: int) -> AdaptedModel:
    """A policy to train: a copy of the adapter in a folder, where it is over this base, else a new one.

    Raises UnusableModel where that adapter has another shape than `lora`.
    """
    base.add(name, lora, _over(base, folder), seed)
    return AdaptedModel(base, name)


def frozen_policy(base: AdaptedBase, name: str, folder: Path) -> AdaptedModel | PreTrainedModel:
    """A policy to compare with: a frozen adapter; the base itself with adapters off; or, where it has
    nothing to do with the base, a whole model beside it."""
    if (adapter := _over(base, folder)) is not None:
        base.add_frozen(name, adapter)
        return AdaptedModel(base, name)
    if weights_digest(folder) == base.digest:
        return AdaptedModel(base, None)
    return to_training_device(load_policy(folder)).eval().requires_grad_(False)


def frozen_reward_model(base: AdaptedBase, folder: Path) -> AdaptedModel | PreTrainedModel:
    """A reward model: a frozen adapter of the base with its own head; or, where it is none, a whole model."""
    if (adapter := _over(base, folder)) is None:
        return to_training_device(load_reward_model(folder)).eval().requires_grad_(False)
    base.add_frozen("reward_model", adapter)
    head = _head(adapter.weights[HEAD_WEIGHT], base.model.device).requires_grad_(False)
    return AdaptedModel(base, "reward_model", _config(folder), head)


def reward_model_and_critic(
    base: AdaptedBase, lora: LoRAConfig, folder: Path, seed: int
) -> tuple[AdaptedModel, AdaptedModel]:
    """A frozen reward model, and a copy of it to train as critic, each with a head of its own.

    Both are adapters of the base where the reward model is one. Else the reward model is a second base, and
    the critic an adapter over it that changes nothing yet.
    """
    reward_model = frozen_reward_model(base, folder)
    if isinstance(reward_model, AdaptedModel):
        base.add_copy("critic", "reward_model")
    else:
        base = AdaptedBase(reward_model, weights_digest(folder))
        base.add("critic", lora, None, seed)
        reward_model = AdaptedModel(base, None, _config(folder), score_head(reward_model))
    assert reward_model.score is not None
    head = copy.deepcopy(reward_model.score).requires_grad_(True)
    return reward_model, AdaptedModel(base, "critic", reward_model.config, head)


def _config(folder: Path) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _over(base: AdaptedBase, folder: Path) -> Adapter | None:
    """The folder's adapter where it is one over this base."""
    adapter = read_adapter(folder)
    return adapter if adapter is not None and adapter.base_sha256 == base.digest else None


def _head(weight: Tensor, device: torch.device) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.load_state_dict({"weight": weight})
    return head.to(device)
