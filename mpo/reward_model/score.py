"""Scores of responses by reward models: one model's, and the cross-fitted ones of a whole file of pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import PaddedBatch, pad_right, sorted_batches
from mpo.checkpoints import handed_over, load_state, save_state
from mpo.config import ScoreStage
from mpo.errors import StageInterrupted
from mpo.hold_out import assign_folds
from mpo.policies import load_reward_model, score_head, to_training_device
from mpo.records import read_pairs
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.folds import differing_folds, fold_reports
from mpo.reward_model.report import ScoredPairs, accuracy_report, is_weak, weak_reason
from mpo.summaries import write_summary
from mpo.tokenization import EncodedPair, encode_pairs, load_tokenizer

BATCH_PAIRS = 16
STATE_FILE = "state.pt"


def end_scores(model: PreTrainedModel, batch: PaddedBatch) -> Tensor:
    """Raw score of each row, read at its last real token: fp32, (batch,). reward_offset is not subtracted.

    transformers' own forward searches for that token by the padding id, which a row may also hold as a token.
    """
    hidden = model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.real_mask.long(), use_cache=False
    ).last_hidden_state
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    last = hidden[rows, batch.real_mask.sum(-1) - 1]
    return score_head(model)(last).squeeze(-1).float()


def reward_offset(model: PreTrainedModel) -> float:
    """What is subtracted from every raw score: the mean over the training responses, kept in config.json."""
    return float((getattr(model.config, "mpo", None) or {}).get("reward_offset", 0.0))


def set_reward_offset(model: PreTrainedModel, offset: float) -> float:
    """Keeps the offset in the model's configuration, from which every scorer takes it; returns it."""
    model.config.mpo = {"kind": "reward_model", "reward_offset": offset}
    return offset


@torch.no_grad()
def score_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> Tensor:
    """Rewards of responses to prompts, token ids both: fp32, (n,), in their order, on the CPU.

    A response counts as terminated where its terminator is among its ids. reward_offset is subtracted.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    scores = torch.empty(len(rows))
    pad_id = model.config.get_text_config().pad_token_id
    for members in sorted_batches([len(row) for row in rows], batch_size):
        batch = pad_right([rows[i] for i in members], pad_id).to(model.device)
        scores[members] = end_scores(model, batch).cpu()
    return scores - reward_offset(model)


def score_encoded(model: PreTrainedModel, pairs: Sequence[EncodedPair]) -> Tensor:
    """Rewards of both responses of each pair: fp32, (n, 2), chosen first."""
    prompts = [pair.prompt_ids for pair in pairs for _ in range(2)]
    responses = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    return score_responses(model, prompts, responses).view(-1, 2)


@dataclass
class CrossFit:
    """Scores of pairs so far, each by the one reward model that has not seen it.

    models: folders in fold order. folds: of each pair, from 1. rewards: (n, 2), chosen first; done: (n,).
    """

    models: Sequence[Path]
    pairs: Sequence[EncodedPair]
    folds: Sequence[int]
    rewards: Tensor
    done: Tensor

    @classmethod
    def start(cls, models: Sequence[Path], pairs: Sequence[EncodedPair], folds: Sequence[int]) -> "CrossFit":
        """Nothing scored yet."""
        return cls(
            models, pairs, folds, torch.zeros(len(pairs), 2), torch.zeros(len(pairs), dtype=torch.bool)
        )

    def batches(self, fold: int) -> list[list[int]]:
        """The fold's pairs, always in the same batches: what is done already must not change a score."""
        rows = [row for row, its_fold in enumerate(self.folds) if its_fold == fold]
        batches = sorted_batches([self.tokens(row) for row in rows], BATCH_PAIRS)
        return [[rows[i] for i in batch] for batch in batches]

    def tokens(self, row: int) -> int:
        """Tokens of a pair: of its prompt and both responses."""
        pair = self.pairs[row]
        return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)

    def run(self) -> Iterator[int]:
        """Scores what is left, batch by batch; yields after each the number of pairs that are done."""
        for fold, folder in enumerate(self.models, start=1):
            left = [batch for batch in self.batches(fold) if not self.done[batch].all()]
            if not left:
                continue
            model = to_training_device(load_reward_model(folder)).eval()
            for batch in left:
                self.rewards[batch] = score_encoded(model, [self.pairs[row] for row in batch])
                self.done[batch] = True
                yield int(self.done.sum())


def score_pairs(task: StageTask, reporter: Reporter) -> None:
    """The stage `score`: roles reward_models, in fold order, and data -> scores.parquet, in data's order.

    Columns: id, reward_chosen, reward_rejected, gap, fold, tokens (of prompt and both responses). A response
    that was not cut is scored as terminated. Raises UnusableModel, NoChatTemplate, TooFewPrompts,
    StageInterrupted.
    """
    config = task.config
    assert isinstance(config, ScoreStage)
    models = [model.path for model in task.inputs["reward_models"]]
    assert len(models) == config.folds, "one reward model a fold"
    pairs = read_pairs(task.one("data").path)
    folds = assign_folds([-1 if pair.group is None else pair.group for pair in pairs], config.folds)
    encoded, counts = encode_pairs(
        pairs,
        load_tokenizer(models[0]),
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    scores = CrossFit.start(models, encoded, folds)
    if task.resume:
        state = load_state(task.resume / STATE_FILE)
        scores.rewards, scores.done = state["rewards"], state["done"]
    _run(scores, task, reporter)
    gaps = write_scores(task.output / "scores.parquet", scores)
    summary = score_summary(ScoredPairs.of(encoded, gaps), folds, reporter)
    write_summary(task.output, {**summary, "encoding": counts.to_json()})


def _run(scores: CrossFit, task: StageTask, reporter: Reporter) -> None:
    for done in scores.run():
        reporter.progress(done, len(scores.pairs), {"pairs": float(done)})
        if done == len(scores.pairs):
            return
        stopping = reporter.should_stop()
        if stopping or reporter.checkpoint_due():
            with handed_over(task, reporter, done) as folder:
                save_state(folder / STATE_FILE, {"rewards": scores.rewards, "done": scores.done})
        if stopping:
            raise StageInterrupted(pairs=done)


def write_scores(path: Path, scores: CrossFit) -> list[float]:
    """Writes the scores as Parquet and returns the gaps. They are differences of fp32 rewards, in fp64."""
    chosen, rejected = scores.rewards.double().unbind(-1)
    gaps: list[float] = (chosen - rejected).tolist()
    columns = {
        "id": [pair.id for pair in scores.pairs],
        "reward_chosen": chosen.tolist(),
        "reward_rejected": rejected.tolist(),
        "gap": gaps,
        "fold": list(scores.folds),
        "tokens": [scores.tokens(row) for row in range(len(scores.pairs))],
    }
    pq.write_table(pa.table(columns), path)
    return gaps


def score_summary(scored: ScoredPairs, folds: Sequence[int], reporter: Reporter) -> dict[str, object]:
    """Accuracy and gaps out of fold, in all and by fold, and whether the gate holds them for weak."""
    reports = fold_reports(scored, folds)
    for warning in differing_folds(reports):
        reporter.warn(warning)
    accuracy = accuracy_report(scored)
    weak = is_weak(scored)
    reason = weak_reason(scored) if weak else None
    if reason is not None:
        reporter.warn(reason)
    return {
        "pairs": len(scored.gaps),
        **accuracy,
        "folds": [report.to_json() for report in reports],
        "scored_by": "cross_fit",
        "weak": weak,
        "weak_reason": reason,
    }
