"""Trains a reward model on pairs, or on all folds of them but one."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mpo.adapters import TRAINED, Opened, open_trained, save_adapted
from mpo.config import RewardModelStage
from mpo.errors import TooFewPrompts
from mpo.hold_out import assign_folds
from mpo.packed_models import pack_where_exact
from mpo.policies import new_reward_model, save_model, score_head, to_training_device
from mpo.ranks import ALONE, Ranks
from mpo.recomputation import recompute_layers
from mpo.records import PreferencePair, read_pairs
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.engine import fit_reward_model
from mpo.reward_model.folds import prompt_groups
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.reward_model.report import ScoredPairs, accuracy_report, calibration_report
from mpo.reward_model.score import score_encoded, set_reward_offset
from mpo.sharding import in_shards
from mpo.summaries import write_summary
from mpo.tokenization import EncodedPair, EncodingCounts, encode_pairs, load_tokenizer
from mpo.training import Training, TrainingOutcome, restore, run
from mpo.trl_engine import padding_tokenizer


def train_reward_model(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> None:
    """The stage `reward_model`: roles backbone, data, and perhaps base and eval -> model.

    Loss: Bradley-Terry, with the pairs' margins and weights. AdamW; the learning rate falls linearly from its
    peak to 0, without warm-up; gradients are clipped to norm 1. Raises InvalidSpec, UnusableModel,
    NoChatTemplate, TooFewPrompts, TrainingDiverged, StageInterrupted.
    """
    config, source = task.config, task.one("backbone").path
    assert isinstance(config, RewardModelStage)
    if config.fold is not None and config.backbone == "sft":
        reporter.warn(
            f"The reward model of fold {config.fold} starts from the SFT model, which has seen every chosen "
            "response, those of the pairs that it is to score too: it may take them for easy."
        )
    tokenizer = load_tokenizer(source)
    pairs = training_pairs(task.one("data").path, config)
    encoded, counts = _encoded(pairs, tokenizer, config)
    opened = open_trained(task, "backbone", lambda folder: new_reward_model(folder, task.seed))
    score_head(opened.model).requires_grad_(True)  # the head is new, also over a frozen base
    outcome = _fit(opened, PairRows.of(pairs, encoded, config), task, reporter, ranks)
    to_training_device(opened.model).eval()
    offset = set_reward_offset(opened.model, score_encoded(opened.model, encoded, ranks).mean().item())
    summary: dict[str, object] = {
        "pairs": len(pairs),
        "steps": outcome.steps,
        "loss_first": outcome.first["loss"],
        "loss_last": outcome.last["loss"],
        "reward_offset": offset,
        "encoding": counts.to_json(),
    }
    if "eval" in task.inputs:
        held_out, _ = _encoded(read_pairs(task.one("eval").path), tokenizer, config)
        summary |= evaluation(opened.model, held_out, ranks)
    if ranks.number > 0:
        return
    _save(opened, offset, source, task.output / "model")
    write_summary(task.output, summary)


def training_pairs(path: Path, config: RewardModelStage) -> list[PreferencePair]:
    """All pairs of a file, or those outside config.fold. Raises TooFewPrompts."""
    pairs = read_pairs(path)
    if config.fold is not None and config.folds is not None:
        folds = assign_folds(prompt_groups(pairs), config.folds)
        pairs = [pair for pair, fold in zip(pairs, folds, strict=True) if fold != config.fold]
    if not pairs:
        raise TooFewPrompts("There are no pairs to train a reward model on.")
    return pairs


def _fit(
    opened: Opened, rows: PairRows, task: StageTask, reporter: Reporter, ranks: Ranks
) -> TrainingOutcome:
    """Trains the model in place, by the engine that the configuration names."""
    config, model = task.config, opened.model
    assert isinstance(config, RewardModelStage)
    pad_id = model.config.get_text_config().pad_token_id
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


def _encoded(
    pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, config: RewardModelStage
) -> tuple[list[EncodedPair], EncodingCounts]:
    return encode_pairs(
        pairs,
        tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
