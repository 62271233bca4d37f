"""TRL's trainers behind our stages: our token ids and row order in, our reports and checkpoints out."""

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mpo.batches import length_grouped_batches, optimizer_steps
from mpo.errors import StageInterrupted
from mpo.policies import training_device
from mpo.precision import resolves_to_bf16
from mpo.ragged_pairs import ids_of, lengths_of
from mpo.reporter import Reporter, StageTask
from mpo.seeds import row_seed
from mpo.synced import sync_tree
from mpo.tokenization import EncodedPair, load_tokenizer
from mpo.training import TrainingOutcome, diverged, keep_nothing_else
from mpo.training_config import TrainingConfig

MICRO_BATCH_ROWS = 32
"""Rows of one forward pass at most; a larger batch is accumulated over several."""

RECOMPUTE = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)
"""transformers' switch that trades compute for memory: both its names occur in the versions we allow."""

METRIC_NAMES: Mapping[str, str] = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "accuracy": "accuracy",
    "margin": "gap",
    "mean_reward": "reward_mean",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "gap",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logprobs_chosen",
    "logps/rejected": "logprobs_rejected",
}
"""TRL's names of what it logs -> ours; what is not named here is not reported."""

C = TypeVar("C")


class RowOrder(Sampler[int]):
    """Row numbers of one pass, in random batches of similar length; a function of seed and pass alone."""

    def __init__(self, lengths: Sequence[int], batch_rows: int, seed: int) -> None:
        self.lengths, self.batch_rows, self.seed, self.epoch = lengths, batch_rows, seed, 0
        # Of one pass: each step asks for its rows, and to put all in order anew takes long.
        self._ordered, self._of_pass = -1, list[list[int]]()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the pass, from 0. The trainer calls this before each, and after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches(self.epoch):
            yield from batch

    def rows(self, step: int) -> list[int]:
        """Row numbers of an optimizer step, counted from 0 through all passes."""
        number, batch = divmod(step, -(-len(self.lengths) // self.batch_rows))
        return self._batches(number)[batch]

    def _batches(self, number: int) -> list[list[int]]:
        if number != self._ordered:
            generator = torch.Generator().manual_seed(row_seed(self.seed, number))
            self._of_pass = length_grouped_batches(self.lengths, self.batch_rows, generator)
            self._ordered = number
        return self._of_pass


class QuietTrainer(Trainer):
    """What our subclasses of TRL's trainers share: our order of rows, and nothing sent or written unasked."""

    row_order: RowOrder

    def _get_train_sampler(self, train_dataset: object = None) -> RowOrder:
        return self.row_order

    def _send_telemetry(self) -> None:
        """TRL reports each trainer that is made to its authors."""

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """TRL writes a README beside each checkpoint."""


class ReporterCallback(TrainerCallback):
    """Tells the reporter what the trainer logs, and hands over the checkpoints that the reporter asks for.

    rows_of, tokens_of: ids of the rows of a step, counted from 0, and their tokens, a prompt that two
    sequences share counted once. before, total, keep: as in `mpo.training.run`.
    """

    def __init__(
        self,
        reporter: Reporter,
        rows_of: Callable[[int], Sequence[str]],
        tokens_of: Callable[[int], int],
        before: int = 0,
        total: int | None = None,
        keep: Callable[[Path], None] = keep_nothing_else,
    ) -> None:
        self.reporter, self.rows_of, self.tokens_of = reporter, rows_of, tokens_of
        self.before, self.total, self.keep = before, total, keep
        self.stopping, self._began = False, time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the step's clock."""
        self._began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Reports a step, and asks for a checkpoint where one is due; the last step needs none.

        Raises TrainingDiverged where the loss or the gradient is not finite.
        """
        logs: Mapping[str, float] = kwargs["logs"]
        if "loss" not in logs:
            return
        metrics = named_metrics(logs)
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics.get("grad_norm", 0.0))):
            before = named_metrics(state.log_history[-2]) if len(state.log_history) > 1 else {}
            rows = self.rows_of(state.global_step - 1)
            raise diverged(self.before + state.global_step, rows, before)
        # Every checkpoint holds the history: only its ends are needed.
        state.log_history = [*state.log_history[:1], *state.log_history[1:][-1:]]
        pace = self.tokens_of(state.global_step - 1) / (time.perf_counter() - self._began)
        step, total = self.before + state.global_step, self.total or state.max_steps
        self.reporter.progress(step, total, {**metrics, "tokens_per_second": pace})
        if state.global_step < state.max_steps:
            self.stopping = self.reporter.should_stop()
            control.should_save = self.stopping or self.reporter.checkpoint_due()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hands the checkpoint over; raises StageInterrupted where it was the reporter's wish to stop."""
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and not needed to go on
        self.keep(folder)
        sync_tree(folder)
        step = self.before + state.global_step
        self.reporter.checkpoint(folder, step)
        shutil.rmtree(folder, ignore_errors=True)
        if self.stopping:
            raise StageInterrupted(step=step)


def named_metrics(logs: Mapping[str, float]) -> dict[str, float]:
    """What TRL logged of a step, under our names."""
    return {ours: float(logs[theirs]) for theirs, ours in METRIC_NAMES.items() if theirs in logs}


def engine_config(kind: Callable[..., C], task: StageTask, rows: int, **loss: object) -> C:
    """TRL's configuration for a stage: dropout off, nothing cut, nothing logged to disk or the net.

    rows: of the training data. loss: what the trainer at hand has besides. The learning rate falls linearly
    from its peak to 0, without warm-up; gradients are clipped to norm 1.
    """
    config = task.config
    assert isinstance(config, TrainingConfig)
    # The trainer takes the mean of its passes' means, which is the rows' only where all passes are alike.
    alike = (
        math.gcd(config.batch_pairs, rows) if config.batch_pairs > MICRO_BATCH_ROWS else config.batch_pairs
    )
    micro = max(n for n in range(1, MICRO_BATCH_ROWS + 1) if alike % n == 0)
    return kind(
        output_dir=str(scratch_folder(task)),
        max_steps=optimizer_steps(rows, config.batch_pairs, config.epochs, config.max_steps),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_pairs // micro,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        max_grad_norm=1.0,
        seed=task.seed,
        # TRL turns these three on, or to 1,024, where they are left open; activations too are kept, not
        # recomputed, unless asked.
        bf16=resolves_to_bf16(config.precision, training_device()),
        use_cpu=training_device().type == "cpu",  # or bf16 is refused where there is no GPU
        **{RECOMPUTE: config.gradient_checkpointing},
        max_length=None,
        disable_dropout=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **loss,
    )


def padding_tokenizer(folder: Path, pad_id: int) -> PreTrainedTokenizerBase:
    """A tokenizer for a trainer to take the padding id from; nothing else of it is used."""
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    return tokenizer


@contextmanager
def settings_kept(model: PreTrainedModel) -> Iterator[None]:
    """Undoes what a trainer sets in the model's configuration: padding id, no cache."""
    before = copy.deepcopy(vars(model.config))
    try:
        yield
    finally:
        vars(model.config).update(before)


def scratch_folder(task: StageTask) -> Path:
    """Where the trainer may write while it runs."""
    return task.output / "trainer"


def run_trainer(
    trainer: QuietTrainer,
    pairs: Sequence[EncodedPair],
    task: StageTask,
    reporter: Reporter,
    *,
    before: int = 0,
    total: int | None = None,
    keep: Callable[[Path], None] = keep_nothing_else,
) -> TrainingOutcome:
    """Trains, from task.resume on where it is given, and leaves the trained weights in trainer.model.

    pairs: the trainer's rows. before, total, keep: as in `mpo.training.run`. Raises TrainingDiverged,
    StageInterrupted.
    """
    assert isinstance(task.config, TrainingConfig)
    ids, lengths = ids_of(pairs), lengths_of(pairs)
    tokens = lengths.tokens
    order = trainer.row_order = RowOrder(lengths.longest, task.config.batch_pairs, task.seed)
    trainer.remove_callback(PrinterCallback)

    def rows_of(step: int) -> list[str]:
        return [ids[row] for row in order.rows(step)]

    def tokens_of(step: int) -> int:
        return sum(tokens[row] for row in order.rows(step))

    trainer.add_callback(ReporterCallback(reporter, rows_of, tokens_of, before, total, keep))
    try:
        trainer.train(resume_from_checkpoint=str(task.resume) if task.resume else None)
    finally:
        shutil.rmtree(scratch_folder(task), ignore_errors=True)
    steps: list[dict[str, Any]] = [entry for entry in trainer.state.log_history if "loss" in entry]
    return TrainingOutcome(trainer.state.global_step, named_metrics(steps[0]), named_metrics(steps[-1]))
