"""Supervised fine-tuning on the chosen responses of pairs, or on texts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow.parquet as pq
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mpo.adapters import open_policy, save_trained
from mpo.batches import even_passes, rows_at_once
from mpo.config import SFTStage
from mpo.errors import EmptySplit
from mpo.packed_models import pack_where_exact, reads_packed_rows
from mpo.packed_rows import passes_of, tokens_at_once
from mpo.policies import to_training_device
from mpo.precision import set_precision
from mpo.ragged_pairs import token_counts
from mpo.ranks import ALONE, Ranks
from mpo.recomputation import recompute_layers
from mpo.records import read_texts
from mpo.reporter import Reporter, StageTask
from mpo.sft.loss import response_loss
from mpo.sharding import in_shards
from mpo.stage_tokens import stage_tokens
from mpo.summaries import write_summary
from mpo.tokenization import encode_texts, load_tokenizer, terminators
from mpo.training import Training, refuse_lone_row, restore, run


@dataclass(frozen=True)
class ResponseTokens:
    """The objective of SFT: cross-entropy of the responses' tokens, a mean over all tokens of a step.

    prompts, responses: token ids; no prompt is empty.
    """

    ids: Sequence[str]
    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    pad_id: int
    vocabulary: int

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        prompts = token_counts(self.prompts)
        return [p + r for p, r in zip(prompts, self.response_lengths, strict=True)]

    @property
    def tokens(self) -> Sequence[int]:
        """The same: a row is one sequence."""
        return self.lengths

    @cached_property
    def response_lengths(self) -> Sequence[int]:
        """Tokens of each response."""
        return token_counts(self.responses)

    def weight(self, row: int) -> float:
        """Tokens that are predicted."""
        return self.response_lengths[row]

    def passes(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterable[Sequence[int]]:
        """As many rows together as the logits' memory allows."""
        if reads_packed_rows(model):
            return passes_of(rows, self.lengths, tokens_at_once(model.device, self.vocabulary))
        return even_passes(rows, rows_at_once(max(self.lengths[row] for row in rows), self.vocabulary))

    def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy summed over tokens, in nats."""
        prompts, responses = [self.prompts[row] for row in rows], [self.responses[row] for row in rows]
        return response_loss(model, prompts, responses, self.pad_id), {}


def train_sft(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> None:
    """The stage `sft`: roles policy, data (pairs or texts) and perhaps base -> model.

    AdamW; the learning rate falls linearly from its peak to 0, without warm-up; gradients are clipped to norm
    1; the loss is a mean over the response tokens of a step. Raises EmptySplit, TooFewRows, UnusableModel,
    NoChatTemplate, TrainingDiverged, StageInterrupted.
    """
    config, source = task.config, task.one("policy").path
    assert isinstance(config, SFTStage)
    tokenizer = load_tokenizer(source)
    opened = open_policy(task, "policy")
    objective, encoding = _objective(task, tokenizer, opened.model, ranks)
    if not objective.ids:
        raise EmptySplit("There is no row to train on: the data of this stage are empty.", rows=0)
    refuse_lone_row(len(objective.ids))
    to_training_device(opened.model).train()
    set_precision(opened.model, config.precision)
    pack_where_exact(opened.model, reporter.warn)
    if config.gradient_checkpointing:
        recompute_layers(opened.model, reporter.warn)
    with in_shards(opened, ranks) as model:
        training = Training(model, objective, config, task.seed, ranks)
        if task.resume:
            restore(training, task.resume)
        outcome = run(training, task, reporter)
    if ranks.number > 0:
        return
    save_trained(opened, source, task.output / "model")
    write_summary(
        task.output,
        {
            "pairs": len(objective.ids),
            "tokens": sum(objective.response_lengths),
            "steps": outcome.steps,
            "loss_first": outcome.first["loss"],
            "loss_last": outcome.last["loss"],
            "encoding": encoding,
        },
    )


def _objective(
    task: StageTask, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, ranks: Ranks
) -> tuple[ResponseTokens, Mapping[str, int]]:
    """The rows as token ids, and what encoding did to them."""
    config, data, source = task.config, task.one("data").path, task.one("policy").path
    assert isinstance(config, SFTStage)
    ends = terminators(source, tokenizer)
    vocabulary = model.config.get_text_config().vocab_size
    if "text" in pq.read_schema(data).names:
        texts = read_texts(data)
        assert config.max_prompt_tokens is not None, "lengths are resolved before a stage runs"
        assert config.max_response_tokens is not None, "lengths are resolved before a stage runs"
        limit = config.max_prompt_tokens + config.max_response_tokens
        rows, cut = encode_texts([text.text for text in texts], tokenizer, limit)
        named = [text.id for text in texts]
        starts, rests = [ids[:1] for ids in rows], [ids[1:] for ids in rows]
        objective = ResponseTokens(named, starts, rests, ends.pad_id, vocabulary)
        return objective, {"texts": len(rows), "texts_cut": cut}
    pairs = stage_tokens(task, "data", tokenizer, ranks)
    objective = ResponseTokens(pairs.ids, pairs.prompts, pairs.chosen, ends.pad_id, vocabulary)
    return objective, pairs.counts().to_json()
