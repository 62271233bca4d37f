"""Scores of responses by a reward model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import PaddedBatch, pad_right, sorted_batches
from mpo.policies import score_head


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
