"""What a PPO training consists of between two iterations, and how it is kept."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mpo.checkpoints import load_state, save_state
from mpo.config import PPOStage
from mpo.generation import SamplingConfig
from mpo.ppo.rollouts import Networks
from mpo.responses import even_parts
from mpo.tokenization import Terminators

ADAM_EPSILON = 1e-5
STATE_FILE = "state.pt"

PROMPT_ORDER, EPISODE, UPDATE_ORDER = 1, 2, 3
"""Keep apart the seeds of prompt orders, of episodes, and of the micro-batches' orders."""


@dataclass
class PPOTraining:
    """A training between two iterations.

    All that it draws at random follows from the seed and the position, so that no generator has to be kept.
    prompts: ids of the distinct prompts. counts: episodes of each iteration. equal_batches: how many
    iterations in a row had all their scores equal. stopped: why it ended early.
    """

    config: PPOStage
    seed: int
    networks: Networks
    reward_model: PreTrainedModel
    prompts: list[list[int]]
    terminators: Terminators
    counts: list[int]
    optimizers: dict[str, torch.optim.AdamW]
    iteration: int = 0
    optimizer_steps: int = 0
    equal_batches: int = 0
    stopped: str | None = None
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    @property
    def sampling(self) -> SamplingConfig:
        """How episodes are drawn."""
        tokens = self.config.max_new_tokens
        assert tokens is not None, "lengths are resolved before a stage runs"
        ends = self.terminators
        return SamplingConfig(tokens, ends.stop_ids, ends.pad_id, temperature=self.config.temperature)

    @property
    def first_episode(self) -> int:
        """Number of the iteration's first episode, of all in the training."""
        return sum(self.counts[: self.iteration])

    def learning_rate(self) -> float:
        """Of the iteration: falls linearly, and would be 0 after the last."""
        return self.config.learning_rate * (1 - self.iteration / len(self.counts))

    def trained(self) -> Iterator[tuple[str, PreTrainedModel]]:
        """The networks in training, by the name of their optimizer."""
        yield "policy", self.networks.policy
        yield "critic", self.networks.critic


def new_optimizers(networks: Networks, learning_rate: float) -> dict[str, torch.optim.AdamW]:
    """AdamW for the policy and for the critic, without weight decay."""
    return {
        name: torch.optim.AdamW(network.parameters(), lr=learning_rate, eps=ADAM_EPSILON, weight_decay=0.0)
        for name, network in (("policy", networks.policy), ("critic", networks.critic))
    }


def episode_counts(config: PPOStage, prompts: int) -> list[int]:
    """Episodes of each iteration: at most rollout_prompts, and alike to within one, so that none is tiny."""
    episodes = config.episodes or prompts
    iterations = -(-episodes // config.rollout_prompts)
    counts = [len(part) for part in even_parts(episodes, iterations)]
    if config.max_steps is None:
        return counts
    steps = [config.epochs * min(config.mini_batches, count) for count in counts]
    return [count for i, count in enumerate(counts) if sum(steps[:i]) < config.max_steps]


def save(training: PPOTraining, folder: Path) -> None:
    """Keeps in a folder all that the next iterations depend on."""
    state: dict[str, object] = {
        "iteration": training.iteration,
        "optimizer_steps": training.optimizer_steps,
        "equal_batches": training.equal_batches,
        "first": training.first,
        "last": training.last,
    }
    for name, network in training.trained():
        state[name] = network.state_dict()
        state[f"{name}_optimizer"] = training.optimizers[name].state_dict()
    save_state(folder / STATE_FILE, state)


def restore(training: PPOTraining, folder: Path) -> None:
    """Puts a training back to what `save` kept."""
    state = load_state(folder / STATE_FILE)
    for name, network in training.trained():
        network.load_state_dict(state[name])
        training.optimizers[name].load_state_dict(state[f"{name}_optimizer"])
    training.iteration, training.optimizer_steps = state["iteration"], state["optimizer_steps"]
    training.equal_batches = state["equal_batches"]
    training.first, training.last = state["first"], state["last"]
