"""Supervised fine-tuning on the chosen responses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mpo.batches import length_grouped_batches, optimizer_steps, rows_at_once
from mpo.checkpoints import handed_over, load_state, save_state
from mpo.config import SFTStage
from mpo.errors import StageInterrupted, TrainingDiverged
from mpo.policies import load_policy, save_model, to_training_device
from mpo.records import read_pairs
from mpo.reporter import Reporter, StageTask
from mpo.sft.loss import response_loss
from mpo.summaries import write_summary
from mpo.tokenization import EncodedPair, encode_pairs, load_tokenizer, terminators

MAX_GRAD_NORM = 1.0
STATE_FILE = "state.pt"


@dataclass
class SFTTraining:
    """A training between two steps. All that it draws at random is the order of rows, by seed and pass."""

    model: PreTrainedModel
    optimizer: torch.optim.AdamW
    pairs: Sequence[EncodedPair]
    config: SFTStage
    seed: int
    pad_id: int
    steps_done: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the first and of the last step."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        config = self.config
        return optimizer_steps(len(self.pairs), config.batch_pairs, config.epochs, config.max_steps)

    def learning_rate(self) -> float:
        """Of the next step: falls linearly from the peak to 0."""
        return self.config.learning_rate * (1 - self.steps_done / self.total_steps)

    def next_batch(self) -> list[EncodedPair]:
        """The rows of the next step."""
        steps_a_pass = -(-len(self.pairs) // self.config.batch_pairs)
        number, step = divmod(self.steps_done, steps_a_pass)
        generator = torch.Generator().manual_seed(self.seed + number)
        lengths = [len(pair.prompt_ids) + len(pair.chosen_ids) for pair in self.pairs]
        batches = length_grouped_batches(lengths, self.config.batch_pairs, generator)
        return [self.pairs[i] for i in batches[step]]


def train_sft(task: StageTask, reporter: Reporter) -> None:
    """The stage `sft`: roles policy and data -> model, cross-entropy on the tokens of the chosen responses.

    AdamW; the learning rate falls linearly from its peak to 0, without warm-up; gradients are clipped to norm
    1; the loss is a mean over the response tokens of a step. Raises UnusableModel, NoChatTemplate,
    TrainingDiverged, StageInterrupted.
    """
    config, source = task.config, task.one("policy").path
    assert isinstance(config, SFTStage)
    tokenizer = load_tokenizer(source)
    pairs, counts = encode_pairs(
        read_pairs(task.one("data").path),
        tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    model = to_training_device(load_policy(source)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    pad_id = terminators(source, tokenizer).pad_id
    training = SFTTraining(model, optimizer, pairs, config, task.seed, pad_id)
    if task.resume:
        restore(training, task.resume)
    run(training, task, reporter)
    save_model(model, source, task.output / "model")
    write_summary(
        task.output,
        {
            "pairs": len(pairs),
            "tokens": sum(len(pair.chosen_ids) for pair in pairs),
            "steps": training.steps_done,
            "loss_first": training.losses[0],
            "loss_last": training.losses[-1],
            "encoding": counts.to_json(),
        },
    )


def run(training: SFTTraining, task: StageTask, reporter: Reporter) -> None:
    """Takes the steps that are left; reports each, and hands over checkpoints between them."""
    while training.steps_done < training.total_steps:
        metrics = train_step(training)
        reporter.progress(training.steps_done, training.total_steps, metrics)
        if training.steps_done == training.total_steps:
            return
        stopping = reporter.should_stop()
        if stopping or reporter.checkpoint_due():
            with handed_over(task, reporter, training.steps_done) as folder:
                save(training, folder)
        if stopping:
            raise StageInterrupted(step=training.steps_done)


def train_step(training: SFTTraining) -> dict[str, float]:
    """One optimizer step, over as many forward passes as its rows need; raises TrainingDiverged."""
    model, optimizer = training.model, training.optimizer
    batch = training.next_batch()
    tokens = sum(len(pair.chosen_ids) for pair in batch)
    longest = max(len(pair.prompt_ids) + len(pair.chosen_ids) for pair in batch)
    size = rows_at_once(longest, model.config.get_text_config().vocab_size)
    rate = training.learning_rate()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss = 0.0
    for start in range(0, len(batch), size):
        rows = batch[start : start + size]
        part = response_loss(
            model, [p.prompt_ids for p in rows], [p.chosen_ids for p in rows], training.pad_id
        )
        (part / tokens).backward()
        loss += part.item() / tokens
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM).item()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingDiverged(step=training.steps_done + 1, last_loss=training.losses[-1:])
    optimizer.step()
    training.steps_done += 1
    training.losses = [*training.losses[:1], loss]
    return {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm, "tokens": float(tokens)}


def save(training: SFTTraining, folder: Path) -> None:
    """Keeps in a folder all that the next steps depend on."""
    state = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "steps_done": training.steps_done,
        "losses": training.losses,
    }
    save_state(folder / STATE_FILE, state)


def restore(training: SFTTraining, folder: Path) -> None:
    """Puts a training back to what `save` kept."""
    state = load_state(folder / STATE_FILE)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.steps_done, training.losses = state["steps_done"], state["losses"]
