"""Log-probabilities of given tokens, in nats, always in fp32."""

import torch
from torch import Tensor


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
    """
    predicted = token_logprobs(logits[:, :-1], token_ids[:, 1:], temperature)
    return torch.where(response_mask[:, 1:], predicted, predicted.new_zeros(())).sum(-1)
