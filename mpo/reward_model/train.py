"""Trains a reward model on pairs, or on all folds of them but one."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mpo.config import RewardModelStage
from mpo.hold_out import assign_folds
from mpo.policies import new_reward_model, save_model, to_training_device
from mpo.records import PreferencePair, read_pairs
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.engine import fit_reward_model
from mpo.reward_model.report import ScoredPairs, accuracy_report, calibration_report
from mpo.reward_model.score import score_encoded, set_reward_offset
from mpo.summaries import write_summary
from mpo.tokenization import EncodedPair, EncodingCounts, encode_pairs, load_tokenizer
from mpo.trl_engine import padding_tokenizer


def train_reward_model(task: StageTask, reporter: Reporter) -> None:
    """The stage `reward_model`: roles backbone, data and perhaps eval -> model.

    Loss: Bradley-Terry. AdamW; the learning rate falls linearly from its peak to 0, without warm-up;
    gradients are clipped to norm 1. Raises UnusableModel, NoChatTemplate, TooFewPrompts, TrainingDiverged,
    StageInterrupted.
    """
    config, backbone = task.config, task.one("backbone").path
    assert isinstance(config, RewardModelStage)
    tokenizer = load_tokenizer(backbone)
    pairs, counts = _encoded(training_pairs(task.one("data").path, config), tokenizer, config)
    model = new_reward_model(backbone, task.seed)
    padding = padding_tokenizer(backbone, model.config.get_text_config().pad_token_id)
    outcome = fit_reward_model(model, pairs, padding, task, reporter)
    to_training_device(model).eval()
    offset = set_reward_offset(model, score_encoded(model, pairs).mean().item())
    save_model(model, backbone, task.output / "model")
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
        summary |= evaluation(model, held_out)
    write_summary(task.output, summary)


def training_pairs(path: Path, config: RewardModelStage) -> list[PreferencePair]:
    """All pairs of a file, or those outside config.fold. Raises TooFewPrompts."""
    pairs = read_pairs(path)
    if config.fold is None or config.folds is None:
        return pairs
    folds = assign_folds([_group(pair) for pair in pairs], config.folds)
    return [pair for pair, fold in zip(pairs, folds, strict=True) if fold != config.fold]


def _group(pair: PreferencePair) -> int:
    assert pair.group is not None, "pairs get their group in the hold-out"
    return pair.group


def evaluation(model: PreTrainedModel, pairs: Sequence[EncodedPair]) -> dict[str, object]:
    """Accuracy and calibration on pairs that the model has not seen, beside the length-only baseline."""
    if not pairs:
        return {"eval_pairs": 0}
    rewards = score_encoded(model, pairs).double()
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
