"""The training loop on rows of data: SFT, reward models and DPO are objectives of it."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpo.batches import length_grouped_batches, optimizer_steps
from mpo.checkpoints import handed_over, load_state, save_state
from mpo.errors import StageInterrupted, TrainingDiverged
from mpo.reporter import Reporter, StageTask
from mpo.seeds import row_seed
from mpo.training_config import TrainingConfig

MAX_GRAD_NORM = 1.0
STATE_FILE = "state.pt"
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

    model: in training; what does not require gradients is frozen. first, last: metrics of those steps.
    """

    model: PreTrainedModel
    objective: Objective
    config: TrainingConfig
    seed: int
    steps_done: int = 0
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.trained().values(), lr=self.config.learning_rate, weight_decay=0.0, fused=True
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters in training, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

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
        lengths, batch = self.objective.lengths, self.config.batch_pairs
        number, step = divmod(self.steps_done, -(-len(lengths) // batch))
        generator = torch.Generator().manual_seed(row_seed(self.seed, number))
        return length_grouped_batches(lengths, batch, generator)[step]

    def outcome(self) -> TrainingOutcome:
        """What the training came to so far."""
        return TrainingOutcome(self.steps_done, self.first, self.last)


def train_step(training: Training, before: int = 0) -> dict[str, float]:
    """One optimizer step, over as many forward passes as its rows need; its metrics, means over the rows.

    before: steps of the stage before this training, for the error to count from.
    Passes add up exactly: each is divided by the weight of the whole step. Gradients are clipped to norm 1.
    Raises TrainingDiverged where the loss or the gradient is not finite; then no weight has changed.
    """
    objective, rows = training.objective, training.next_rows()
    weight = sum(objective.weight(row) for row in rows) or 1.0  # all weights 0: nothing to learn here
    rate, loss, sums = training.learning_rate(), 0.0, Counter[str]()
    training.optimizer.zero_grad(set_to_none=True)
    for together in objective.passes(training.model, rows):
        part, metrics = objective.losses(training.model, together)
        (part / weight).backward()
        loss += part.item() / weight
        for name, value in metrics.items():
            sums[name] += value.item()  # type: ignore[assignment]
    grad_norm = torch.nn.utils.clip_grad_norm_(training.trained().values(), MAX_GRAD_NORM).item()
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
    """Takes the steps that are left; reports each, and hands over checkpoints between them.

    before, total: the stage's steps before this training, and in all, where it is one of several; after the
    last step it is for the stage to keep what came of it. keep: adds to a checkpoint what else the stage
    needs. Raises TrainingDiverged, StageInterrupted.
    """
    total = training.total_steps if total is None else total
    while training.steps_done < training.total_steps:
        metrics = train_step(training, before)
        step = before + training.steps_done
        reporter.progress(step, total, metrics)
        if training.steps_done == training.total_steps:
            break
        stopping = reporter.should_stop()
        if stopping or reporter.checkpoint_due():
            with handed_over(task, reporter, step) as folder:
                save(training, folder)
                keep(folder)
        if stopping:
            raise StageInterrupted(step=step)
    return training.outcome()


def save(training: Training, folder: Path) -> None:
    """Keeps in a folder all that the next steps depend on; frozen weights are not among it."""
    state = {
        "parameters": {name: p.detach() for name, p in training.trained().items()},
        "optimizer": training.optimizer.state_dict(),
        "steps_done": training.steps_done,
        "first": training.first,
        "last": training.last,
    }
    save_state(folder / STATE_FILE, state)


@torch.no_grad()
def restore(training: Training, folder: Path) -> None:
    """Puts a training back to what `save` kept."""
    state = load_state(folder / STATE_FILE)
    for name, parameter in training.trained().items():
        parameter.copy_(state["parameters"][name])
    training.optimizer.load_state_dict(state["optimizer"])
    training.steps_done = state["steps_done"]
    training.first, training.last = state["first"], state["last"]
