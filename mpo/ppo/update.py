"""The update of policy and critic on one iteration's episodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpo.errors import TrainingDiverged
from mpo.ppo.loss import OldTokens, ppo_loss
from mpo.ppo.rollouts import response_values
from mpo.ppo.state import UPDATE_ORDER, PPOTraining
from mpo.responses import ResponseBatch, even_parts, response_logprobs
from mpo.seeds import permutation


@dataclass
class UpdateStatistics:
    """Sums over the optimizer steps of one iteration; tokens counts each as often as it was trained on."""

    steps: int = 0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    grad_norm: float = 0.0
    clipped_tokens: int = 0
    tokens: int = 0
    largest_ratio: float = 0.0

    def metrics(self, value_coefficient: float) -> dict[str, float]:
        """Means over steps and tokens, and the largest ratio of any token."""
        policy, value = self.policy_loss / self.steps, self.value_loss / self.steps
        return {
            "loss": policy + value_coefficient * value,
            "policy_loss": policy,
            "value_loss": value,
            "ratio_max": self.largest_ratio,
            "clip_fraction": self.clipped_tokens / self.tokens,
            "grad_norm": self.grad_norm / self.steps,
        }


def update(training: PPOTraining, batches: Sequence[ResponseBatch], old: OldTokens) -> UpdateStatistics:
    """Passes over the micro-batches in random orders, dealt evenly to the optimizer steps of a pass.

    old: (episodes, tokens). The rows of a micro-batch never change within an iteration, or the first ratios
    would not be exactly 1. Raises TrainingDiverged.
    """
    config, statistics = training.config, UpdateStatistics()
    for epoch in range(config.epochs):
        order = permutation(len(batches), training.seed, UPDATE_ORDER, training.iteration, epoch)
        for part in even_parts(len(batches), config.mini_batches):
            if training.optimizer_steps == config.max_steps:
                return statistics
            _optimizer_step(training, [batches[order[place]] for place in part], old, statistics)
    return statistics


def _optimizer_step(
    training: PPOTraining, batches: Sequence[ResponseBatch], old: OldTokens, statistics: UpdateStatistics
) -> None:
    tokens = torch.stack([batch.response_mask.sum() for batch in batches]).sum()
    for optimizer in training.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        _accumulate(training, batch, old, tokens, statistics)
    norms = [
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.config.max_grad_norm).item()
        for _, network in training.trained()
    ]
    if not all(math.isfinite(x) for x in (*norms, statistics.policy_loss, statistics.value_loss)):
        raise TrainingDiverged(iteration=training.iteration + 1, step=training.optimizer_steps + 1)
    for optimizer in training.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate()
        optimizer.step()
    training.optimizer_steps += 1
    statistics.steps += 1
    statistics.tokens += int(tokens)
    statistics.grad_norm += norms[0]


def _accumulate(
    training: PPOTraining, batch: ResponseBatch, old: OldTokens, tokens: Tensor, statistics: UpdateStatistics
) -> None:
    """Adds a micro-batch's share to the gradients of both networks."""
    config, networks = training.config, training.networks
    terms = ppo_loss(
        response_logprobs(networks.policy, batch, config.temperature),
        response_values(networks.critic, batch, networks.critic_offset),
        _rows_of(old, batch),
        clip=config.clip,
        value_clip=config.value_clip,
        tokens=tokens,
    )
    (terms.policy_loss + config.value_coefficient * terms.value_loss).backward()
    statistics.policy_loss += terms.policy_loss.item()
    statistics.value_loss += terms.value_loss.item()
    statistics.clipped_tokens += int(terms.clipped_tokens)
    statistics.largest_ratio = max(statistics.largest_ratio, terms.largest_ratio.item())


def _rows_of(old: OldTokens, batch: ResponseBatch) -> OldTokens:
    here = (batch.rows, slice(0, batch.response_mask.shape[1]))
    return OldTokens(
        logprobs=old.logprobs[here],
        values=old.values[here],
        advantages=old.advantages[here],
        returns=old.returns[here],
        response_mask=batch.response_mask,
    )
