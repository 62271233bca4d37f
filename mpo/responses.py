"""Prompts with their responses as padded batches, and what a policy says of the responses' tokens."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.last_layer import last_layer_at
from mpo.logprobs import token_logprobs
from mpo.packed_models import packed_logits, packed_states, reads_packed_rows
from mpo.packed_rows import Family, PackedRow
from mpo.precision import autocast_of
from mpo.records import Content


@dataclass(frozen=True)
class ResponseBatch:
    """Rows that go through a network together: prompts padded on the left, responses on the right.

    rows: their numbers in whatever they are a part of. input_ids, attention_mask, position_ids: (rows, prompt
    and response columns). response_mask: (rows, response columns), True at real tokens of the response.
    packed: the same without padding, for models that read it.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response_mask: Tensor
    packed: PackedRow

    @property
    def response_tokens(self) -> Tensor:
        """(tokens,): the real tokens of the responses, row by row."""
        return self.packed.targets

    @property
    def before(self) -> slice:
        """The padded columns that predict those of the responses."""
        return slice(-self.response_mask.shape[1] - 1, -1)

    def halves(self) -> list["ResponseBatch"]:
        """The rows in two batches, in the same columns; one row cannot be divided."""
        middle = len(self.rows) // 2
        return [self._part(slice(middle)), self._part(slice(middle, None))] if middle else [self]

    def _part(self, rows: slice) -> "ResponseBatch":
        columns = [self.input_ids, self.attention_mask, self.position_ids, self.response_mask]
        ids, attention, positions, response = (column[rows] for column in columns)
        before = ids.shape[1] - response.shape[1]
        families = [
            Family(ids[i, :before][attention[i, :before].bool()].tolist(), [ids[i, before:][mask].tolist()])
            for i, mask in enumerate(response)
        ]
        packed = PackedRow.of(families, ids.device)
        return ResponseBatch(self.rows[rows], ids, attention, positions, response, packed)

    def spread(self, by_token: Tensor) -> Tensor:
        """Numbers of real tokens in their columns: (rows, response columns) of (tokens,); 0 at padding."""
        return by_token.new_zeros(self.response_mask.shape).masked_scatter(self.response_mask, by_token)


def distinct_prompts(prompts: Iterable[Content]) -> list[Content]:
    """Each prompt once, in the order of their first occurrences."""
    return list({json.dumps(prompt): prompt for prompt in prompts}.values())


def even_parts(count: int, parts: int) -> Iterator[range]:
    """0 … count − 1 in consecutive ranges whose lengths differ by at most one; no range is empty."""
    parts = min(parts, count)
    edges = [count * part // parts for part in range(parts + 1)]
    return (range(a, b) for a, b in pairwise(edges))


def pad_responses(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_id: int,
    device: torch.device,
    rows: Tensor | None = None,
) -> ResponseBatch:
    """Token ids as one batch in which every response starts at the same column; no prompt is empty.

    Of no row at all it is a batch without columns, which goes through no network.
    """
    before = max((len(p) for p in prompts), default=0)
    width = before + max((len(r) for r in responses), default=0)
    input_ids = torch.full((len(prompts), width), pad_id)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        real = slice(before - len(prompt), before + len(response))
        input_ids[row, real] = torch.tensor(prompt + response)
        attention_mask[row, real] = 1
    return ResponseBatch(
        torch.arange(len(prompts)) if rows is None else rows,
        input_ids.to(device),
        attention_mask.to(device),
        (attention_mask.cumsum(dim=1) - 1).clamp(min=0).to(device),
        attention_mask[:, before:].bool().to(device),
        PackedRow.of([Family(p, [r]) for p, r in zip(prompts, responses, strict=True)], device),
    )


def in_halves(batches: Iterable[ResponseBatch]) -> list[ResponseBatch]:
    """The halves of all, in their order."""
    return [half for batch in batches for half in batch.halves()]


def response_logits(model: PreTrainedModel, batch: ResponseBatch, temperature: float = 1.0) -> Tensor:
    """logits / temperature that predict the real response tokens, row by row: fp32, (tokens, vocabulary)."""
    if reads_packed_rows(model):
        logits = packed_logits(model, batch.packed)
    else:
        logits = _predictions(model, batch).logits[:, :-1][batch.response_mask]
    return logits.float() / temperature


def response_logits_and_states(
    model: PreTrainedModel, batch: ResponseBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """`response_logits`, and the final hidden states they are read from: (tokens, width), fp32."""
    if reads_packed_rows(model):
        row = batch.packed
        with autocast_of(model), last_layer_at(model, row.before):
            outputs = model(**row.inputs(), logits_to_keep=row.before, output_hidden_states=True)
        logits, states = outputs.logits[0], outputs.hidden_states[-1][0, row.before]
    else:
        outputs = _predictions(model, batch, output_hidden_states=True)
        logits = outputs.logits[:, :-1][batch.response_mask]
        states = outputs.hidden_states[-1][:, batch.before][batch.response_mask]
    return logits.float() / temperature, states.float()


def response_states(model: PreTrainedModel, batch: ResponseBatch) -> Tensor:
    """Final hidden states before the responses' real tokens, row by row: (tokens, width), in the model's
    precision."""
    if reads_packed_rows(model):
        return packed_states(model, batch.packed, batch.packed.before)
    with autocast_of(model):
        hidden: Tensor = model.base_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
    return hidden[:, batch.before][batch.response_mask]


def _predictions(model: PreTrainedModel, batch: ResponseBatch, **asked: bool) -> Any:
    with autocast_of(model):
        return model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            # One more than the tokens: the first of them is predicted from the last token of the prompt.
            logits_to_keep=batch.response_mask.shape[1] + 1,
            **asked,
        )


def response_logprobs(model: PreTrainedModel, batch: ResponseBatch, temperature: float) -> Tensor:
    """Logprob of each response token, in nats: (rows, response columns); 0 at padding."""
    return batch.spread(token_logprobs(response_logits(model, batch, temperature), batch.response_tokens))
