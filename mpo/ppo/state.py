"""What a PPO training consists of between two iterations, and how it is kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mpo.checkpoints import load_state, save_state
from mpo.config import PPOStage
from mpo.generation import SamplingConfig
from mpo.packed_models import say_nothing
from mpo.ppo.networks import Networks, TrainedNetwork, kept, put_back, weights_of
from mpo.ppo.prompts import EncodedPrompt
from mpo.ppo.rollouts import episode_prompts
from mpo.ranks import ALONE, Ranks
from mpo.responses import even_parts
from mpo.seeds import row_seed
from mpo.step_gradients import MEMORY_IS_SHORT
from mpo.tokenization import Terminators

STATE_FILE = "state.safetensors"

PROMPT_ORDER, EPISODE, UPDATE_ORDER = 1, 2, 3
"""Keep apart the seeds of prompt orders, of episodes, and of the micro-batches' orders."""


@dataclass
class PPOTraining:
    """A training between two iterations.

    All that it draws at random follows from the seed and the position, so that no generator has to be kept.
    prompts: distinct. counts: episodes of each iteration. kl_coefficient: of the next iteration. ranks: they
    all hold the same training. equal_batches: how many iterations in a row had all their rewards equal.
    halved: whether forward passes hold half of what they might, as the memory did not hold more. stopped: why
    it ended early. first, last: metrics of the first and the last iteration that ended. tell: hears what a
    person should read, though the training goes on.
    """

    config: PPOStage
    seed: int
    networks: Networks
    prompts: list[EncodedPrompt]
    terminators: Terminators
    counts: list[int]
    trained: list[TrainedNetwork]
    kl_coefficient: float
    ranks: Ranks = ALONE
    iteration: int = 0
    optimizer_steps: int = 0
    equal_batches: int = 0
    halved: bool = False
    stopped: str | None = None
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    tell: Callable[[str], None] = say_nothing

    def halve(self) -> None:
        """Forward passes hold half of what they might from here on."""
        self.halved = True
        self.tell(MEMORY_IS_SHORT)

    @property
    def sampling(self) -> SamplingConfig:
        """How episodes are drawn: from softmax(logits / temperature) over the whole vocabulary."""
        tokens = self.config.max_new_tokens
        assert tokens is not None, "lengths are resolved before a stage runs"
        ends = self.terminators
        return SamplingConfig(tokens, ends.stop_ids, ends.pad_id, temperature=self.config.temperature)

    @property
    def episodes(self) -> range:
        """Numbers of the iteration's episodes, of all in the training."""
        start = sum(self.counts[: self.iteration])
        return range(start, start + sum(self.counts[self.iteration : self.iteration + 1]))

    def chosen_prompts(self) -> list[int]:
        """Numbers of the prompts that the iteration's episodes answer."""
        episodes, seed = self.episodes, row_seed(self.seed, PROMPT_ORDER)
        return episode_prompts(seed, len(self.prompts), episodes.start, len(episodes))

    def learning_rate(self) -> float:
        """Of the iteration: falls linearly, and would be 0 after the last."""
        return self.config.learning_rate * (1 - self.iteration / len(self.counts))


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
        "kl_coefficient": training.kl_coefficient,
        "equal_batches": training.equal_batches,
        "halved": training.halved,
        "first": training.first,
        "last": training.last,
        "trained": {trained.name: trained.state() for trained in training.trained},
    }
    if training.config.ema_reference is not None:
        state["reference"] = kept(weights_of(training.networks.reference))
    save_state(folder / STATE_FILE, state)


def restore(training: PPOTraining, folder: Path) -> None:
    """Puts a training back to what `save` kept."""
    state = load_state(folder / STATE_FILE)
    for trained in training.trained:
        trained.restore(state["trained"][trained.name])
    if training.config.ema_reference is not None:
        put_back(weights_of(training.networks.reference), state["reference"])
    training.iteration, training.optimizer_steps = state["iteration"], state["optimizer_steps"]
    training.kl_coefficient, training.equal_batches = state["kl_coefficient"], state["equal_batches"]
    training.halved = state["halved"]
    training.first, training.last = state["first"], state["last"]
