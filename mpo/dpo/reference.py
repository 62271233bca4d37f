"""The reference's log-probabilities, computed once before the training."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import length_mask, pad_right, rows_at_once, sorted_batches
from mpo.dpo.loss import PairLogprobs
from mpo.logprobs import sequence_logprobs
from mpo.tokenization import EncodedPair


def batch_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> Tensor:
    """Log-probability of each response to its prompt, summed over its tokens, in nats: fp32, (batch,)."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    batch = pad_right(rows, pad_id).to(model.device)
    in_prompt = length_mask([len(prompt) for prompt in prompts], batch.input_ids.shape[1]).to(model.device)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.real_mask.long(), use_cache=False).logits
    return sequence_logprobs(logits, batch.input_ids, batch.real_mask & ~in_prompt)


@torch.no_grad()
def pair_logprobs(model: PreTrainedModel, pairs: Sequence[EncodedPair], pad_id: int) -> PairLogprobs:
    """Log-probabilities of both responses of each pair, in order, on the CPU."""
    prompts = [pair.prompt_ids for pair in pairs for _ in range(2)]
    responses = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    batch_rows = rows_at_once(max(lengths), model.config.get_text_config().vocab_size)
    logprobs = torch.empty(len(lengths))
    for rows in sorted_batches(lengths, batch_rows):
        batch = batch_logprobs(model, [prompts[i] for i in rows], [responses[i] for i in rows], pad_id)
        logprobs[rows] = batch.cpu()
    return PairLogprobs(*logprobs.view(-1, 2).unbind(-1))
