"""What the gold reward, which nobody trained on, says of a model's answers, and how far it has moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from examples.grammar import gold_reward
from mpo.generation import SampledResponse, SamplingConfig, sample
from mpo.policies import load_policy
from mpo.responses import even_parts, pad_responses, response_logits
from mpo.seeds import row_seed
from mpo.tokenization import encode_prompt, load_tokenizer, terminators

ROWS_AT_ONCE = 25


@dataclass(frozen=True)
class Answers:
    """A model's answers to the prompts. gold: of each; kl: full-vocabulary KL to SFT, in nats a response."""

    gold: list[float]
    kl: float
    tokens: float
    ended: float


def measure(folder: Path, sft: Path, prompts: Sequence[str], sampling: tuple[int, int], seed: int) -> Answers:
    """Samples one answer a prompt at temperature 1. sampling: longest prompt and answer, in tokens."""
    tokenizer, ends = load_tokenizer(folder), terminators(folder)
    ids = [encode_prompt(prompt, tokenizer, sampling[0]) for prompt in prompts]
    policy = load_policy(folder).eval()
    config = SamplingConfig(sampling[1], ends.stop_ids, ends.pad_id)
    responses = sample(policy, ids, config, [row_seed(seed, number) for number in range(len(ids))])
    texts = [str(tokenizer.decode(r.token_ids, skip_special_tokens=True)) for r in responses]
    return Answers(
        gold=[gold_reward(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
        kl=_kl(policy, load_policy(sft).eval(), ids, responses, ends.pad_id),
        tokens=sum(len(r.token_ids) for r in responses) / len(responses),
        ended=sum(r.finish_reason == "stop" for r in responses) / len(responses),
    )


@torch.no_grad()
def _kl(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: list[list[int]],
    responses: list[SampledResponse],
    pad_id: int,
) -> float:
    total = 0.0
    for part in even_parts(len(prompts), -(-len(prompts) // ROWS_AT_ONCE)):
        here = slice(part.start, part.stop)
        ids = [response.token_ids for response in responses[here]]
        batch = pad_responses(prompts[here], ids, pad_id, policy.device)
        logprobs = torch.log_softmax(response_logits(policy, batch), dim=-1)
        reference_logprobs = torch.log_softmax(response_logits(reference, batch), dim=-1)
        tokens = (logprobs.exp() * (logprobs - reference_logprobs)).sum(dim=-1)
        total += tokens.masked_fill(~batch.response_mask, 0.0).sum().item()
    return total / len(prompts)
