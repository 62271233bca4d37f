"""KL between two policies on responses that one of them sampled, over the whole vocabulary."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mpo.answers import load_still
from mpo.batches import rows_at_once
from mpo.generation import never_stop
from mpo.policies import load_policy
from mpo.responses import even_parts, pad_responses, response_logits


@torch.no_grad()
def sampled_kl(
    model: Path,
    base: Path,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_id: int,
    should_stop: Callable[[int], bool] = never_stop,
) -> list[float]:
    """KL(model ‖ base), summed over the tokens of each response, at temperature 1: nats a response, (n,).

    model, base: folders of policies of one vocabulary; prompts, responses: token ids, each not empty. The
    responses are the model's own: where they were sampled at temperature 1, the mean over them estimates the
    KL of whole responses, with less noise than the sampled tokens' log-ratios. should_stop: called with the
    number of responses done after each batch; what it raises ends the work. Raises UnusableModel.
    """
    policy, reference = load_still(load_policy, model), load_still(load_policy, base)
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    rows = max(1, rows_at_once(longest, policy.config.get_text_config().vocab_size) // 2)
    kls: list[float] = []
    for part in even_parts(len(responses), -(-len(responses) // rows)):
        here = slice(part.start, part.stop)
        batch = pad_responses(prompts[here], responses[here], pad_id, policy.device)
        logprobs = torch.log_softmax(response_logits(policy, batch), dim=-1)
        reference_logprobs = torch.log_softmax(response_logits(reference, batch), dim=-1)
        tokens = (logprobs.exp() * (logprobs - reference_logprobs)).sum(dim=-1)
        kls += batch.spread(tokens).sum(dim=1).tolist()
        should_stop(len(kls))
    return kls
