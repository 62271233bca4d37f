"""What a model says of a prompt's own tokens: for requests that echo it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mpo.batches import pad_right, sorted_batches
from mpo.errors import UnusableModel

LOGITS_AT_ONCE = 64 << 20
"""Numbers of logits held at a time: rows x longest x vocabulary."""


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's logprob in nats, and the likeliest (token id, logprob) there."""

    logprob: float
    top: list[tuple[int, float]]


@torch.no_grad()
def prompt_logprobs(
    model: PreTrainedModel, prompts: Sequence[list[int]], pad_id: int, top: int
) -> list[list[TokenLogprobs | None]]:
    """For each prompt, for each of its tokens; None for the first, which nothing predicts."""
    found: list[list[TokenLogprobs | None]] = [[] for _ in prompts]
    longest = max(len(prompt) for prompt in prompts)
    vocabulary = model.config.get_text_config().vocab_size
    rows_at_once = max(1, LOGITS_AT_ONCE // (longest * vocabulary))
    for members in sorted_batches([len(prompt) for prompt in prompts], rows_at_once):
        batch = pad_right([prompts[i] for i in members], pad_id).to(model.device)
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.real_mask.long(), use_cache=False
        ).logits
        for row, member in enumerate(members):
            found[member] = _read_row(logits[row].float(), prompts[member], top)
    return found


def _read_row(logits: torch.Tensor, prompt: list[int], top: int) -> list[TokenLogprobs | None]:
    logprobs = torch.log_softmax(logits[: len(prompt) - 1], dim=-1)
    if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
        raise UnusableModel("The model's logits are not finite.")
    chosen = logprobs.gather(1, torch.tensor(prompt[1:], device=logprobs.device)[:, None])[:, 0].tolist()
    values, ids = (t.tolist() for t in logprobs.topk(min(top, logprobs.shape[1]), dim=-1))
    pairs = [list(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)]
    return [None, *(TokenLogprobs(c, p) for c, p in zip(chosen, pairs, strict=True))]
