"""Scores of responses by reward models: one model's, and those of a whole file of pairs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import PaddedBatch, pad_right, sorted_batches
from mpo.checkpoints import handed_over, load_state, save_state
from mpo.config import ScoreStage
from mpo.errors import StageInterrupted, UnusableModel
from mpo.gap_index import Floats
from mpo.model_tokens import refuse_other_ids
from mpo.packed_models import pack_where_exact, packed_states, reads_packed_rows, say_nothing
from mpo.packed_rows import Family, PackedRow, passes_of, tokens_at_once
from mpo.policies import load_reward_model, score_head, to_training_device
from mpo.precision import autocast_of, set_precision
from mpo.ragged_pairs import ids_of, lengths_of, take_pairs
from mpo.ranks import ALONE, Ranks
from mpo.records import stream_pairs
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.folds import differing_folds, fold_reports, prompt_groups
from mpo.reward_model.report import ScoredPairs, accuracy_report, is_weak, weak_reason
from mpo.reward_model.scheme import assign_scorers, calibrated
from mpo.stage_tokens import stage_tokens
from mpo.summaries import write_summary
from mpo.tokenization import EncodedPair, load_tokenizer
from mpo.training_config import Precision

BATCH_PAIRS = 16
STATE_FILE = "state.safetensors"
SCORES_SCHEMA = pa.schema(
    [("id", pa.string())]
    + [(name, pa.float64()) for name in ("reward_chosen", "reward_rejected", "gap")]
    + [("fold", pa.int64()), ("tokens", pa.int64())]
)
IN_SAMPLE = (
    "The reward model scores pairs that it was trained on: it takes them for easy, so that the split and the "
    "accuracy are too good. score.scheme cross_fit or held_out scores unseen pairs."
)


def end_scores(model: PreTrainedModel, batch: PaddedBatch) -> Tensor:
    """Raw score of each row, read at its last real token: fp32, (batch,). reward_offset is not subtracted.

    transformers' own forward searches for that token by the padding id, which a row may also hold as a token.
    """
    with autocast_of(model):
        hidden = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.real_mask.long(), use_cache=False
        ).last_hidden_state
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    last = hidden[rows, batch.real_mask.sum(-1) - 1]
    return head_scores(model, last)


def head_scores(model: PreTrainedModel, states: Tensor) -> Tensor:
    """What the head makes of final hidden states: fp32, (states,) of (states, width).

    In fp32 whatever the precision of the pass: rounded to bf16, gaps near 0 would be 0 or far from it.
    """
    head = score_head(model)
    scores: Tensor = head(states.to(head.weight.dtype))  # the weights of a model that is trained are fp32
    return scores.squeeze(-1).float()


def pair_scores(model: PreTrainedModel, pairs: Sequence[EncodedPair], pad_id: int) -> Tensor:
    """Raw scores of both responses of each pair: fp32, (pairs, 2), chosen first, from one forward pass."""
    if reads_packed_rows(model):
        families = [Family(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in pairs]
        return row_scores(model, PackedRow.of(families, model.device)).view(-1, 2)
    rows = [pair.prompt_ids + ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    return end_scores(model, pad_right(rows, pad_id).to(model.device)).view(-1, 2)


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
    scores, lengths = torch.empty(len(rows)), [len(row) for row in rows]
    pad_id = model.config.get_text_config().pad_token_id
    if reads_packed_rows(model):
        for members in passes_of(range(len(rows)), lengths, tokens_at_once(model.device)):
            row = PackedRow.of([Family(prompts[i], [responses[i]]) for i in members], model.device)
            scores[members] = row_scores(model, row).cpu()
        return scores - reward_offset(model)
    for members in sorted_batches(lengths, batch_size):
        batch = pad_right([rows[i] for i in members], pad_id).to(model.device)
        scores[members] = end_scores(model, batch).cpu()
    return scores - reward_offset(model)


def row_scores(model: PreTrainedModel, row: PackedRow) -> Tensor:
    """Raw score of each response of a packed row, read at its end: fp32, (responses,)."""
    return head_scores(model, packed_states(model, row, row.ends))


def score_encoded(model: PreTrainedModel, pairs: Sequence[EncodedPair], ranks: Ranks = ALONE) -> Tensor:
    """Rewards of both responses of each pair: fp32, (n, 2), chosen first, on every rank. Raises UnusableModel
    where one is not finite."""
    rewards = _rewards(model, pairs, ranks)
    for row, pair in enumerate(pairs):
        if pair.chosen_ids == pair.rejected_ids:  # rounding must not make one of two equal responses win
            rewards[row, 1] = rewards[row, 0]
    if not bool(torch.isfinite(rewards).all()):
        row = int((~torch.isfinite(rewards)).any(dim=1).nonzero()[0])
        raise UnusableModel(
            f"The reward model gives the pair {pairs[row].id} a reward that is not finite: its training has "
            "diverged, or its files are damaged.",
            pair=pairs[row].id,
        )
    return rewards


@torch.no_grad()
def _rewards(model: PreTrainedModel, pairs: Sequence[EncodedPair], ranks: Ranks) -> Tensor:
    """(n, 2), fp32, on the CPU; pairs of like length together, the same whoever computes them."""
    scores, tokens = torch.zeros(len(pairs), 2), lengths_of(pairs).tokens
    pad_id = model.config.get_text_config().pad_token_id
    if reads_packed_rows(model):
        order = sorted(range(len(pairs)), key=lambda row: (-tokens[row], row))
        passes: Iterable[list[int]] = passes_of(order, tokens, tokens_at_once(model.device))
    else:
        passes = sorted_batches(tokens, BATCH_PAIRS)
    for rows in islice(passes, ranks.number, None, ranks.count):
        scores[rows] = pair_scores(model, [pairs[row] for row in rows], pad_id).cpu()
    return ranks.sum(scores) - reward_offset(model)


@dataclass
class PairScores:
    """Scores of pairs so far, each by the one reward model that scores it.

    models: folders; scorers: of each pair, its model's place among them, None where none scores it. rewards:
    (n, 2), chosen first; done: (n,). precision: that the models are run in.
    """

    models: Sequence[Path]
    pairs: Sequence[EncodedPair]
    scorers: Sequence[int | None]
    rewards: Tensor
    done: Tensor
    precision: Precision = "fp32"

    @classmethod
    def start(
        cls,
        models: Sequence[Path],
        pairs: Sequence[EncodedPair],
        scorers: Sequence[int | None],
        precision: Precision = "fp32",
    ) -> "PairScores":
        """Nothing scored yet."""
        n = len(pairs)
        return cls(models, pairs, scorers, torch.zeros(n, 2), torch.zeros(n, dtype=torch.bool), precision)

    @property
    def scored_rows(self) -> list[int]:
        """Of the pairs that some model scores."""
        return [row for row, scorer in enumerate(self.scorers) if scorer is not None]

    def batches(self, model: int) -> list[list[int]]:
        """A model's pairs, always in the same batches: what is done already must not change a score."""
        rows = [row for row, scorer in enumerate(self.scorers) if scorer == model]
        batches = sorted_batches([self.tokens[row] for row in rows], BATCH_PAIRS)
        return [[rows[i] for i in batch] for batch in batches]

    @cached_property
    def tokens(self) -> Sequence[int]:
        """Of each pair: of its prompt and both responses."""
        return lengths_of(self.pairs).tokens

    def run(self) -> Iterator[int]:
        """Scores what is left, batch by batch; yields after each the number of pairs that are done."""
        for number, folder in enumerate(self.models):
            left = [batch for batch in self.batches(number) if not self.done[batch].all()]
            if not left:
                continue
            model = to_training_device(load_reward_model(folder)).eval()
            set_precision(model, self.precision)
            pack_where_exact(model, say_nothing)
            for batch in left:
                self.rewards[batch] = score_encoded(model, take_pairs(self.pairs, batch))
                self.done[batch] = True
                yield int(self.done.sum())


def score_pairs(task: StageTask, reporter: Reporter) -> None:
    """The stage `score`: roles reward_models, in fold order, and data -> scores.parquet, in data's order.

    Columns: id, reward_chosen, reward_rejected, gap, fold (null where the model is no fold's), tokens (of
    prompt and both responses); pairs that no model scores are left out. A response that was not cut is scored
    as terminated. Raises UnusableModel, NoChatTemplate, TooFewPrompts, InvalidSpec, StageInterrupted.
    """
    config = task.config
    assert isinstance(config, ScoreStage)
    models = [model.path for model in task.inputs["reward_models"]]
    refuse_other_ids(task, "reward_models", ("reward_models",))
    groups = prompt_groups(stream_pairs(task.one("data").path))
    scorers = assign_scorers(groups, config, len(models))
    if config.scheme == "in_sample":
        reporter.warn(IN_SAMPLE)
    encoded = stage_tokens(task, "data", load_tokenizer(models[0]))
    scores = PairScores.start(models, encoded, scorers.models, config.precision)
    if task.resume:
        state = load_state(task.resume / STATE_FILE)
        scores.rewards, scores.done = state["rewards"], state["done"]
    _run(scores, task, reporter)
    rows = scores.scored_rows
    folds = [scorers.folds[row] for row in rows]
    rewards, temperatures = calibrated(scores.rewards[rows].double().numpy(), folds, config, reporter)
    gaps = rewards[:, 0] - rewards[:, 1]
    write_scores(task.output / "scores.parquet", scores, rewards, folds)
    scored = ScoredPairs.of(encoded.take(rows), gaps)
    summary = score_summary(scored, folds, temperatures, reporter)
    unscored = len(encoded) - len(rows)
    write_summary(
        task.output,
        {**summary, "unscored": unscored, "scored_by": config.scheme, "encoding": encoded.counts().to_json()},
    )


def _run(scores: PairScores, task: StageTask, reporter: Reporter) -> None:
    total = len(scores.scored_rows)
    for done in scores.run():
        reporter.progress(done, total, {"pairs": float(done)})
        if done == total:
            return
        stopping = reporter.should_stop()
        if stopping or reporter.checkpoint_due():
            with handed_over(task, reporter, done) as folder:
                save_state(folder / STATE_FILE, {"rewards": scores.rewards, "done": scores.done})
        if stopping:
            raise StageInterrupted(pairs=done)


def write_scores(path: Path, scores: PairScores, rewards: Floats, folds: Sequence[int | None]) -> None:
    """Writes the scored pairs as Parquet; gaps are differences in fp64. rewards: (n, 2); folds: (n,)."""
    rows = scores.scored_rows
    columns = [
        ids_of(take_pairs(scores.pairs, rows)),
        rewards[:, 0],
        rewards[:, 1],
        rewards[:, 0] - rewards[:, 1],
        folds,
        [scores.tokens[row] for row in rows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCORES_SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCORES_SCHEMA), path)


def score_summary(
    scored: ScoredPairs,
    folds: Sequence[int | None],
    temperatures: Mapping[int | None, float],
    reporter: Reporter,
) -> dict[str, object]:
    """Accuracy and gaps of the scored pairs, in all and by fold, and whether the gate holds them for weak."""
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
        "folds": [{**report.to_json(), "temperature": temperatures[report.fold]} for report in reports],
        "weak": weak,
        "weak_reason": reason,
    }
