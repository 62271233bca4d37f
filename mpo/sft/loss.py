"""The loss of supervised fine-tuning."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import length_mask, pad_right
from mpo.logprobs import token_logprobs
from mpo.packed_models import packed_logits, reads_packed_rows
from mpo.packed_rows import Family, PackedRow
from mpo.precision import autocast_of


def response_loss(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
) -> Tensor:
    """Cross-entropy of the response tokens, summed over tokens and rows, a scalar in nats.

    prompts, responses: token ids, no prompt empty; the first token of a response is predicted at the last one
    of its prompt. The head's logits are turned into fp32 at response positions alone.
    """
    if reads_packed_rows(model):
        families = [Family(prompt, [response]) for prompt, response in zip(prompts, responses, strict=True)]
        row = PackedRow.of(families, model.device)
        return -token_logprobs(packed_logits(model, row), row.targets).sum()
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    batch = pad_right(rows, pad_id).to(model.device)
    in_prompt = length_mask([len(prompt) for prompt in prompts], batch.input_ids.shape[1])
    predicted = (batch.real_mask & ~in_prompt.to(model.device))[:, 1:]
    with autocast_of(model):
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.real_mask.long(), use_cache=False
        ).logits
    return -token_logprobs(logits[:, :-1][predicted], batch.input_ids[:, 1:][predicted]).sum()
