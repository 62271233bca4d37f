"""Trains a reward model on pairs, or on all folds of them but one."""

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from mpo.adapters import TRAINED, Opened, open_trained, save_adapted
from mpo.config import RewardModelStage
from mpo.errors import TooFewPrompts
from mpo.hold_out import assign_folds
from mpo.packed_models import pack_where_exact
from mpo.policies import new_reward_model, save_model, score_head, to_training_device
from mpo.precision import set_precision
from mpo.ranks import ALONE, Ranks
from mpo.recomputation import recompute_layers
from mpo.records import PreferencePair, count_rows, stream_pairs
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.engine import fit_reward_model
from mpo.reward_model.folds import prompt_groups
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.reward_model.report import ScoredPairs, accuracy_report, calibration_report
from mpo.reward_model.score import score_encoded, set_reward_offset
from mpo.sharding import in_shards
from mpo.stage_tokens import stage_tokens
from mpo.summaries import write_summary
from mpo.tokenization import EncodedPair, load_tokenizer
from mpo.training import Training, TrainingOutcome, refuse_lone_row, restore, run
from mpo.trl_engine import padding_tokenizer


def train_reward_model(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> None:
    """The stage `reward_model`: roles backbone, data, and perhaps base and eval -> model.

    Loss: Bradley-Terry, with the pairs' margins and weights. AdamW; the learning rate falls linearly from its
    peak to 0, without warm-up; gradients are clipped to norm 1. Raises InvalidSpec, UnusableModel,
    NoChatTemplate, TooFewPrompts, TooFewRows, TrainingDiverged, StageInterrupted.
    """
    config, source = task.config, task.one("backbone").path
    assert isinstance(config, RewardModelStage)
    if config.fold is not None and config.backbone == "sft":
        reporter.warn(
            f"The reward model of fold {config.fold} starts from the SFT model, which has seen every chosen "
            "response, those of the pairs that it is to score too: it may take them for easy."
        )
    tokenizer = load_tokenizer(source)
    data = task.one("data").path
    rows = training_rows(data, config)
    encoded = stage_tokens(task, "data", tokenizer, ranks).take(rows)
    opened = open_trained(task, "backbone", lambda folder: new_reward_model(folder, task.seed))
    score_head(opened.model).requires_grad_(True)  # the head is new, also over a frozen base
    outcome = _fit(opened, PairRows.of(pairs_at(data, rows), encoded, config), task, reporter, ranks)
    to_training_device(opened.model).eval()
    offset = set_reward_offset(opened.model, score_encoded(opened.model, encoded, ranks).mean().item())
    summary: dict[str, object] = {
        "pairs": len(rows),
        "steps": outcome.steps,
        "loss_first": outcome.first["loss"],
        "loss_last": outcome.last["loss"],
        "reward_offset": offset,
        "encoding": encoded.counts().to_json(),
    }
    if "eval" in task.inputs:
        summary |= evaluation(opened.model, stage_tokens(task, "eval", tokenizer, ranks), ranks)
    if ranks.number > 0:
        return
    _save(opened, offset, source, task.output / "model")
    write_summary(task.output, summary)


def training_rows(path: Path, config: RewardModelStage) -> Sequence[int]:
    """Numbers of all pairs of a file, or of those outside config.fold, in order.

    Raises TooFewPrompts, TooFewRows.
    """
    rows: Sequence[int] = range(count_rows(path))
    if config.fold is not None and config.folds is not None:
        folds = assign_folds(prompt_groups(stream_pairs(path)), config.folds)
        rows = [row for row, fold in enumerate(folds) if fold != config.fold]
    if not rows:
        raise TooFewPrompts("There are no pairs to train a reward model on.")
    refuse_lone_row(len(rows))
    return rows


def pairs_at(path: Path, rows: Sequence[int]) -> Iterator[PreferencePair]:
    """The pairs of a file at these rows, which ascend; a batch in memory at a time."""
    kept = np.zeros(count_rows(path), np.bool_)
    kept[rows] = True
    return compress(stream_pairs(path), kept)


def _fit(
    opened: Opened, rows: PairRows, task: StageTask, reporter: Reporter, ranks: Ranks
) -> TrainingOutcome:
    """Trains the model in place, by the engine that the configuration names."""
    config, model = task.config, opened.model
    assert isinstance(config, RewardModelStage)
    pad_id = model.config.get_text_config().pad_token_id
    set_precision(model, config.precision)
    if config.engine == "trl":
        padding = padding_tokenizer(task.one("backbone").path, pad_id)
        return fit_reward_model(model, rows, padding, task, reporter)
    objective = PairRewards(rows, pad_id, config.label_smoothing, config.centring)
    to_training_device(model).train()
    pack_where_exact(model, reporter.warn)
    if config.gradient_checkpointing:
        recompute_layers(model, reporter.warn)
    with in_shards(opened, ranks) as trained:
        training = Training(trained, objective, config, task.seed, ranks)
        if task.resume:
            restore(training, task.resume)
        return run(training, task, reporter)


def _save(opened: Opened, offset: float, source: Path, target: Path) -> None:
    if opened.base is None:
        save_model(opened.model, source, target)
    else:
        save_adapted(opened.base, TRAINED, source, target, extra={"reward_offset": offset})


def evaluation(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], ranks: Ranks = ALONE
) -> dict[str, object]:
    """Accuracy and calibration on pairs that the model has not seen, beside the length-only baseline."""
    if not pairs:
        return {"eval_pairs": 0}
    rewards = score_encoded(model, pairs, ranks).double()
    scored = ScoredPairs.of(pairs, (rewards[:, 0] - rewards[:, 1]).tolist())
    return {"eval_pairs": len(pairs), **accuracy_report(scored), **calibration_report(scored)}
