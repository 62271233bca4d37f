"""Prompts with their responses as padded batches, and what a policy says of the responses' tokens."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.logprobs import token_logprobs
from mpo.records import Content


@dataclass(frozen=True)
class ResponseBatch:
    """Rows that go through a network together: prompts padded on the left, responses on the right.

    rows: their numbers in whatever they are a part of. input_ids, attention_mask, position_ids: (rows, prompt
    and response columns). response_mask: (rows, response columns), True at real tokens of the response.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response_mask: Tensor

    @property
    def response_ids(self) -> Tensor:
        """(rows, response columns): the tokens of the responses, then padding."""
        return self.input_ids[:, -self.response_mask.shape[1] :]


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
    """Token ids as one batch in which every response starts at the same column; no prompt is empty."""
    before = max(len(p) for p in prompts)
    width = before + max(len(r) for r in responses)
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
    )


def response_logits(model: PreTrainedModel, batch: ResponseBatch, temperature: float = 1.0) -> Tensor:
    """logits / temperature that predict each response token: (rows, tokens, vocabulary), fp32."""
    return _predictions(model, batch).logits[:, :-1].float() / temperature


def response_logits_and_states(
    model: PreTrainedModel, batch: ResponseBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """`response_logits`, and the final hidden states they are read from: (rows, tokens, width), fp32."""
    outputs = _predictions(model, batch, output_hidden_states=True)
    before = slice(-batch.response_mask.shape[1] - 1, -1)
    return outputs.logits[:, :-1].float() / temperature, outputs.hidden_states[-1][:, before].float()


def _predictions(model: PreTrainedModel, batch: ResponseBatch, **asked: bool) -> Any:
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
    """Logprob of each response token, in nats: (rows, tokens); anything at padding."""
    return token_logprobs(response_logits(model, batch, temperature), batch.response_ids)
