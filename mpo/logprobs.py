"""Log-probabilities of given tokens, in nats, always in fp32."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import length_mask, pad_right
from mpo.precision import autocast_of


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature), fp32, shaped as token_ids.

    logits: (…, vocabulary), any floating type; token_ids: (…), the token that each position's logits predict.
    Nothing is shifted here.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    return torch.log_softmax(scaled, dim=-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def sequence_logprobs(
    logits: Tensor, token_ids: Tensor, response_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each row's response, summed over its tokens: fp32, (batch,).

    logits: (batch, length, vocabulary) at each position of token_ids (batch, length); response_mask: the same
    shape, True at the response's tokens. Each is predicted one position earlier, so position 0 never counts.
    Logits of other positions are left out by selection: they may be anything, and get no gradient.
    """
    predicted = response_mask[:, 1:]
    found = token_logprobs(logits[:, :-1][predicted], token_ids[:, 1:][predicted], temperature)
    return found.new_zeros(predicted.shape).masked_scatter(predicted, found).sum(-1)


def response_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> Tensor:
    """Log-probability of each response to its prompt, summed over its tokens: fp32, (batch,).

    prompts, responses: token ids, no prompt empty; the first token of a response is predicted at the last one
    of its prompt.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    batch = pad_right(rows, pad_id).to(model.device)
    in_prompt = length_mask([len(prompt) for prompt in prompts], batch.input_ids.shape[1]).to(model.device)
    with autocast_of(model):
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.real_mask.long(), use_cache=False
        ).logits
    return sequence_logprobs(logits, batch.input_ids, batch.real_mask & ~in_prompt)
