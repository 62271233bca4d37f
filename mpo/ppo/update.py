"""The update of policy and critic on one iteration's episodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from mpo.gradient_sums import sum_gradients
from mpo.logprobs import token_logprobs
from mpo.ppo.failures import diverged
from mpo.ppo.loss import OldTokens, PolicyTerms, ppo_policy_loss, ppo_value_loss
from mpo.ppo.networks import Critic, ValueHead
from mpo.ppo.state import UPDATE_ORDER, PPOTraining
from mpo.ranks import Ranks
from mpo.responses import ResponseBatch, even_parts, in_halves, response_logits_and_states, response_logprobs
from mpo.seeds import permutation
from mpo.short_memory import if_it_fits_all


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
        """Means over steps and tokens, and the largest ratio of any token. grad_norm is the policy's."""
        policy, value = self.policy_loss / self.steps, self.value_loss / self.steps
        return {
            "loss": policy + value_coefficient * value,
            "policy_loss": policy,
            "value_loss": value,
            "ratio_max": self.largest_ratio,
            "clip_fraction": self.clipped_tokens / self.tokens,
            "grad_norm": self.grad_norm / self.steps,
        }

    def add(self, step: "UpdateStatistics") -> None:
        """With those of one more step."""
        self.steps += step.steps
        self.policy_loss += step.policy_loss
        self.value_loss += step.value_loss
        self.grad_norm += step.grad_norm
        self.clipped_tokens += step.clipped_tokens
        self.tokens += step.tokens
        self.largest_ratio = max(self.largest_ratio, step.largest_ratio)

    def of_all(self, ranks: Ranks) -> "UpdateStatistics":
        """With what each rank had of its shares; steps, tokens and norms were the whole steps'."""
        every = ranks.gather_objects(self)
        return replace(
            self,
            policy_loss=sum(one.policy_loss for one in every),
            value_loss=sum(one.value_loss for one in every),
            clipped_tokens=sum(one.clipped_tokens for one in every),
            largest_ratio=max(one.largest_ratio for one in every),
        )


def update(training: PPOTraining, batches: Sequence[ResponseBatch], old: OldTokens) -> UpdateStatistics:
    """Passes over the micro-batches in random orders, dealt evenly to the optimizer steps of a pass.

    batches: this rank's shares. old: (episodes, tokens), of all. The rows of a micro-batch never change
    within an iteration, or the first ratios would not be exactly 1; but where the memory of any rank did not
    hold one after all, halves of all are read from there on. Raises TrainingDiverged.
    """
    statistics, config = UpdateStatistics(), training.config
    for epoch in range(config.epochs):
        order = permutation(len(batches), training.seed, UPDATE_ORDER, training.iteration, epoch)
        for part in even_parts(len(batches), config.mini_batches):
            if training.optimizer_steps == config.max_steps:
                return statistics.of_all(training.ranks)
            mine = [batches[order[place]] for place in part]
            statistics.add(_optimizer_step(training, mine, old))
    return statistics.of_all(training.ranks)


def _optimizer_step(
    training: PPOTraining, batches: Sequence[ResponseBatch], old: OldTokens
) -> UpdateStatistics:
    ranks = training.ranks
    tokens = ranks.sum(torch.stack([batch.response_mask.sum() for batch in batches]).sum())
    step, broken = _gradients_within_memory(training, batches, old, tokens)
    if any(everywhere := ranks.gather_objects(broken)):
        rows = list(chain(*everywhere))
        raise diverged(training, "the loss", rows, step=training.optimizer_steps + 1)
    sum_gradients(ranks, chain(*(trained.weights.values() for trained in training.trained)))
    norms = [trained.clip_gradients(training.config.max_grad_norm) for trained in training.trained]
    if not all(map(math.isfinite, norms)):
        rows = list(chain(*ranks.gather_objects([row for batch in batches for row in batch.rows.tolist()])))
        raise diverged(training, "a gradient", rows, step=training.optimizer_steps + 1)
    for trained in training.trained:
        trained.step(training.learning_rate())
    training.optimizer_steps += 1
    return replace(step, steps=1, tokens=int(tokens), grad_norm=norms[0])


Gradients = tuple[UpdateStatistics, list[int]]
"""What a step's passes came to, and the rows of the first micro-batch whose loss is not finite; none where
all are."""


def _gradients_within_memory(
    training: PPOTraining,
    batches: Sequence[ResponseBatch],
    old: OldTokens,
    tokens: Tensor,
) -> Gradients:
    if not training.halved:
        once = partial(_accumulate_until_broken, training, batches, old, tokens)
        if (found := if_it_fits_all(training.ranks, once)) is not None:
            return found
        training.halve()
    return _accumulate_until_broken(training, in_halves(batches), old, tokens)


def _accumulate_until_broken(
    training: PPOTraining, batches: Sequence[ResponseBatch], old: OldTokens, tokens: Tensor
) -> Gradients:
    """Leaves the gradients of the micro-batches in the weights."""
    step = UpdateStatistics()
    for trained in training.trained:
        trained.optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        if len(batch.rows) and not _accumulate(training, batch, old, tokens, step):
            rows: list[int] = batch.rows.tolist()
            return step, rows
    return step, []


def _accumulate(
    training: PPOTraining, batch: ResponseBatch, old: OldTokens, tokens: Tensor, statistics: UpdateStatistics
) -> bool:
    """Adds a micro-batch's share to the gradients of all networks in training; whether it was finite."""
    here, critic = old.rows(batch.rows, batch.response_mask), training.networks.critic
    if isinstance(critic, ValueHead):
        terms, value = _backward_through_trunk(training, critic, batch, here, tokens)
    else:
        terms, value = _backward_apart(training, critic, batch, here, tokens)
    policy_loss, squares = terms.loss.item(), value.item()
    if not (math.isfinite(policy_loss) and math.isfinite(squares)):
        return False
    statistics.policy_loss += policy_loss
    statistics.value_loss += squares
    statistics.clipped_tokens += int(terms.clipped_tokens)
    statistics.largest_ratio = max(statistics.largest_ratio, terms.largest_ratio.item())
    return True


def _backward_through_trunk(
    training: PPOTraining, head: ValueHead, batch: ResponseBatch, old: OldTokens, tokens: Tensor
) -> tuple[PolicyTerms, Tensor]:
    config = training.config
    logits, states = response_logits_and_states(training.networks.policy, batch, config.temperature)
    logprobs = batch.spread(token_logprobs(logits, batch.response_tokens))
    terms = ppo_policy_loss(logprobs, old, clip=config.clip, tokens=tokens)
    value = ppo_value_loss(batch.spread(head.values(states)), old, clip=config.value_clip, tokens=tokens)
    (terms.loss + config.value_coefficient * value).backward()
    return terms, value


def _backward_apart(
    training: PPOTraining, critic: Critic, batch: ResponseBatch, old: OldTokens, tokens: Tensor
) -> tuple[PolicyTerms, Tensor]:
    config = training.config
    logprobs = response_logprobs(training.networks.policy, batch, config.temperature)
    terms = ppo_policy_loss(logprobs, old, clip=config.clip, tokens=tokens)
    # Before the critic runs: the two may be adapters of one base, of which only one is active.
    terms.loss.backward()
    value = ppo_value_loss(critic.values(batch), old, clip=config.value_clip, tokens=tokens)
    (config.value_coefficient * value).backward()
    return terms, value
