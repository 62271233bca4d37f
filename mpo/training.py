"""The training loop on rows of data: SFT, reward models and DPO are objectives of it."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from mpo.batches import length_grouped_batches, optimizer_steps
from mpo.checkpoints import State, handed_over, load_state, save_state
from mpo.errors import StageInterrupted, TooFewRows, TrainingDiverged
from mpo.heap import take_into_memory
from mpo.packed_models import say_nothing
from mpo.ranks import ALONE, Ranks, any_of
from mpo.reporter import Reporter, StageTask
from mpo.seeds import row_seed
from mpo.sharding import is_sharded, load_states, sharded_as, whole, whole_states
from mpo.step_gradients import gradients_within_memory
from mpo.training_config import TrainingConfig

MAX_GRAD_NORM = 1.0
STATE_FILE = "state.safetensors"
NAMED_ROWS = 8
"""Rows that a failure's message names at most; its facts name all."""


class Objective(Protocol):
    """What a training minimizes: the mean over a step's rows, by weight, of each row's loss."""

    @property
    def ids(self) -> Sequence[str]:
        """Of the rows, for whoever has to look at them."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row's longest sequence; computed once, as every step asks."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Of each row, a prompt that two sequences share counted once."""
        ...

    def weight(self, row: int) -> float:
        """What a row counts in the mean: its tokens, its own weight, or 1."""
        ...

    def passes(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterable[Sequence[int]]:
        """The rows of a step in forward passes that the memory holds; every row once."""
        ...

    def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The rows' losses, each times its weight, summed: a scalar; and sums of metrics over the rows."""
        ...


@dataclass(frozen=True)
class TrainingOutcome:
    """What a training came to: its optimizer steps, and the metrics of the first and of the last one."""

    steps: int
    first: Mapping[str, float]
    last: Mapping[str, float]


@dataclass
class Training:
    """A training between two steps. All that it draws at random is the order of rows, by seed and pass.

    model: in training; what does not require gradients is frozen. ranks: all of them hold the same training.
    halved: whether forward passes hold half of what they might, as the memory did not hold more. first, last:
    metrics of those steps. in_shards: whether each rank holds a part of every weight in training. tell: hears
    what a person should read, though the training goes on.
    """

    model: PreTrainedModel
    objective: Objective
    config: TrainingConfig
    seed: int
    ranks: Ranks = ALONE
    steps_done: int = 0
    halved: bool = False
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    tell: Callable[[str], None] = say_nothing

    def __post_init__(self) -> None:
        # Once: every step asks for them, and to walk through a model's modules takes longer than it seems.
        self._trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.in_shards = is_sharded(list(self._trained.values()))
        if not self.in_shards:
            take_into_memory(self._trained.values())
        # Of one pass over the rows: to put a hundred thousand in order anew takes a fifth of a small step.
        self._ordered, self._batches = -1, list[list[int]]()
        self.optimizer = torch.optim.AdamW(
            self._trained.values(), lr=self.config.learning_rate, weight_decay=0.0, fused=True
        )

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The parameters in training, by name."""
        return self._trained

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        config = self.config
        return optimizer_steps(
            len(self.objective.lengths), config.batch_pairs, config.epochs, config.max_steps
        )

    def learning_rate(self) -> float:
        """Of the next step: falls linearly from the peak to 0, without warm-up."""
        return self.config.learning_rate * (1 - self.steps_done / self.total_steps)

    def next_rows(self) -> list[int]:
        """The rows of the next step."""
        number, step = divmod(self.steps_done, -(-len(self.objective.lengths) // self.config.batch_pairs))
        if number != self._ordered:
            self._ordered, self._batches = number, self._batches_of(number)
        return self._batches[step]

    def tokens_of_step(self) -> int:
        """Of the rows of the next step."""
        tokens = self.objective.tokens
        return sum(tokens[row] for row in self.next_rows())

    def _batches_of(self, number: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(row_seed(self.seed, number))
        return length_grouped_batches(self.objective.lengths, self.config.batch_pairs, generator)

    def outcome(self) -> TrainingOutcome:
        """What the training came to so far."""
        return TrainingOutcome(self.steps_done, self.first, self.last)


def train_step(training: Training, before: int = 0) -> dict[str, float]:
    """One optimizer step, over as many forward passes as its rows need; its metrics, means over the rows.

    before: steps of the stage before this training, for the error to count from.
    Passes add up exactly: each is divided by the weight of the whole step. Gradients are clipped to norm 1.
    Where the device's memory does not hold them, passes are halved from here on, once in a training.
    Raises TrainingDiverged where the loss or the gradient is not finite; then no weight has changed. Half of
    a pass that is too much as well raises what torch does (`mpo/short_memory.py: is_short`).
    """
    objective, rows, rate = training.objective, training.next_rows(), training.learning_rate()
    loss, sums = gradients_within_memory(training, rows)
    grad_norm = whole(clip_grad_norm_(training.trained().values(), MAX_GRAD_NORM)).item()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise diverged(before + training.steps_done + 1, [objective.ids[row] for row in rows], training.last)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    training.optimizer.step()
    training.steps_done += 1
    means = {name: total / len(rows) for name, total in sums.items()}
    training.last = {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm, **means}
    training.first = training.first or training.last
    return training.last


def refuse_lone_row(rows: int) -> None:
    """Raises TooFewRows for a row that is alone: a model would learn it by heart, and nothing else."""
    if rows == 1:
        raise TooFewRows(
            "There is a single row to train on, and nothing to be learned of it but itself. Give this stage "
            "two rows or more; where it is what a split, a hold-out or a fold left, another threshold, "
            "fraction or number of folds leaves more.",
            rows=1,
        )


def diverged(step: int, ids: Sequence[str], last_metrics: Mapping[str, float]) -> TrainingDiverged:
    """The error that names the step, its rows and the metrics of the step before."""
    before = listed_metrics(last_metrics) or "no step was taken"
    return TrainingDiverged(
        f"The loss or a gradient is not finite at step {step}, on the rows {listed_rows(ids)}. Before it: "
        f"{before}. "
        "A lower learning_rate is the usual cure; else look at these rows and at the model's weights.",
        step=step,
        rows=list(ids),
        last_metrics=dict(last_metrics),
    )


def listed_rows(ids: Sequence[str]) -> str:
    """The first of the ids, and how many more there are."""
    more = f" and {len(ids) - NAMED_ROWS} more" if len(ids) > NAMED_ROWS else ""
    return ", ".join(ids[:NAMED_ROWS]) + more


def listed_metrics(metrics: Mapping[str, float]) -> str:
    """Names and numbers, to four digits."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def keep_nothing_else(_folder: Path) -> None:
    """The `keep` of a training whose checkpoints hold its own state alone."""


def run(
    training: Training,
    task: StageTask,
    reporter: Reporter,
    *,
    before: int = 0,
    total: int | None = None,
    keep: Callable[[Path], None] = keep_nothing_else,
) -> TrainingOutcome:
    """Takes the steps that are left; reports each, and has rank 0 hand over checkpoints between them.

    before, total: the stage's steps before this training, and in all, where it is one of several; after the
    last step it is for the stage to keep what came of it. keep: adds to a checkpoint what else the stage
    needs. Raises TrainingDiverged, StageInterrupted.
    """
    total = training.total_steps if total is None else total
    training.tell = reporter.warn
    while training.steps_done < training.total_steps:
        tokens, started = training.tokens_of_step(), time.perf_counter()
        metrics = train_step(training, before)
        step, seconds = before + training.steps_done, time.perf_counter() - started
        reporter.progress(step, total, {**metrics, "tokens_per_second": tokens / seconds})
        if training.steps_done == training.total_steps:
            break
        stopping, due = any_of(training.ranks, reporter.should_stop(), reporter.checkpoint_due())
        if stopping or due:
            state = state_of(training)
            if training.ranks.number == 0:
                with handed_over(task, reporter, step) as folder:
                    save_state(folder / STATE_FILE, state)
                    keep(folder)
        if stopping:
            raise StageInterrupted(step=step)
    return training.outcome()


def save(training: Training, folder: Path) -> None:
    """Keeps in a folder all that the next steps depend on."""
    save_state(folder / STATE_FILE, state_of(training))


def state_of(training: Training) -> State:
    """All that the next steps depend on, the same on any number of ranks; frozen weights are not among it.

    What is in shards is put together here, by all ranks.
    """
    return {
        "parameters": {name: whole(p.detach()) for name, p in training.trained().items()},
        "optimizer": whole_states(training.optimizer),
        "steps_done": training.steps_done,
        "halved": training.halved,
        "first": training.first,
        "last": training.last,
    }


@torch.no_grad()
def restore(training: Training, folder: Path) -> None:
    """Puts a training back to what `save` kept."""
    state = load_state(folder / STATE_FILE)
    for name, parameter in training.trained().items():
        parameter.copy_(sharded_as(parameter, state["parameters"][name]))
    load_states(training.optimizer, state["optimizer"])
    training.steps_done, training.halved = state["steps_done"], state.get("halved", False)
    training.first, training.last = state["first"], state["last"]
