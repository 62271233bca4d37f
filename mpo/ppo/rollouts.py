"""Episodes of PPO: which prompts, what the policy answered, and what the networks say of each token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import LOGITS_AT_ONCE
from mpo.generation import SampledResponse, SamplingConfig, sample
from mpo.logprobs import token_logprobs
from mpo.packed_models import reads_packed_rows
from mpo.ppo.networks import Networks, ValueHead
from mpo.ranks import ALONE, Ranks, share
from mpo.responses import (
    ResponseBatch,
    even_parts,
    pad_responses,
    response_logits,
    response_logits_and_states,
    response_logprobs,
)
from mpo.seeds import permutation

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**14}
"""Tokens of a forward pass by the kind of device: enough to keep it busy; more cost memory alone."""


@dataclass(frozen=True)
class Rollouts:
    """Episodes of one iteration: prompt ids, and the response that the policy drew to each."""

    prompts: list[list[int]]
    responses: list[SampledResponse]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> list[int]:
        """Of each episode's prompt and response."""
        return [len(p) + len(r.token_ids) for p, r in zip(self.prompts, self.responses, strict=True)]

    @property
    def was_cut(self) -> Tensor:
        """(episodes,), True where a response reached the limit before it ended; on the CPU."""
        return torch.tensor([response.finish_reason == "length" for response in self.responses])


@dataclass(frozen=True)
class PassBound:
    """What a forward pass may hold: tokens, those of responses, whose logits are kept, and whether rows are
    padded to the longest of them."""

    tokens: int
    responses: int
    padded: bool

    @classmethod
    def of(cls, policy: PreTrainedModel) -> "PassBound":
        """For passes through a policy."""
        vocabulary = policy.config.get_text_config().vocab_size
        tokens = TOKENS_AT_ONCE.get(policy.device.type, 2**14)
        return cls(tokens, LOGITS_AT_ONCE // vocabulary, not reads_packed_rows(policy))

    def holds(self, prompts: Sequence[int], responses: Sequence[int]) -> bool:
        """Whether rows of so many tokens are within it; a row by itself always is."""
        if self.padded:
            count, longest = len(prompts), max(responses)
            prompts, responses = [max(prompts)] * count, [longest] * count
        within = sum(prompts) + sum(responses) <= self.tokens and sum(responses) <= self.responses
        return within or len(prompts) == 1


@dataclass(frozen=True)
class RolloutTokens:
    """A number for each sampled token, by what gave it: (episodes, longest response), fp32; 0 at padding."""

    response_mask: Tensor
    logprobs: Tensor
    entropies: Tensor
    reference_logprobs: Tensor
    sft_logprobs: Tensor | None
    values: Tensor


def episode_prompts(seed: int, prompts: int, start: int, count: int) -> list[int]:
    """Numbers of the prompts of episodes start … start + count: one random permutation after another."""
    passes = range(start // prompts, (start + count - 1) // prompts + 1)
    numbers = [number for one_pass in passes for number in permutation(prompts, seed, one_pass)]
    skipped = start - passes.start * prompts
    return numbers[skipped : skipped + count]


def sample_rollouts(
    policy: PreTrainedModel,
    prompts: list[list[int]],
    config: SamplingConfig,
    seeds: Sequence[int],
    should_stop: Callable[[int], bool],
) -> Rollouts:
    """Draws one response to each prompt from softmax(logits / temperature)."""
    return Rollouts(prompts, sample(policy, prompts, config, seeds, should_stop))


def form_micro_batches(
    rollouts: Rollouts,
    optimizer_steps: int,
    bound: PassBound,
    pad_id: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> list[ResponseBatch]:
    """The episodes in order, in as few even parts for each optimizer step as the bound allows.

    Of each part this rank's share, which may be empty: the parts, and so the optimizer steps, are the same on
    any number of ranks.
    """
    tokens = rollouts.tokens
    batches = _parts(rollouts, min(optimizer_steps, len(rollouts)), bound)
    mine = [share(ranks, tokens[rows.start : rows.stop], turn) for turn, rows in enumerate(batches)]
    return [
        _micro_batch(rollouts, rows[here.start : here.stop], pad_id, device)
        for rows, here in zip(batches, mine, strict=True)
    ]


def _parts(rollouts: Rollouts, steps: int, bound: PassBound) -> list[range]:
    prompts = [len(prompt) for prompt in rollouts.prompts]
    responses = [len(response.token_ids) for response in rollouts.responses]
    parts = steps
    while True:
        rows = list(even_parts(len(rollouts), parts))
        if all(bound.holds(prompts[r.start : r.stop], responses[r.start : r.stop]) for r in rows):
            return rows
        parts += steps


def _micro_batch(rollouts: Rollouts, rows: range, pad_id: int, device: torch.device) -> ResponseBatch:
    return pad_responses(
        [rollouts.prompts[row] for row in rows],
        [rollouts.responses[row].token_ids for row in rows],
        pad_id,
        device,
        torch.tensor(list(rows), dtype=torch.long, device=device),
    )


def measure_tokens(
    networks: Networks,
    batches: Sequence[ResponseBatch],
    episodes: int,
    temperature: float,
    ranks: Ranks = ALONE,
) -> RolloutTokens:
    """Old logprobs, entropies, reference logprobs and values, from the micro-batches that the update uses.

    batches: this rank's shares; what comes of them is of all ranks'.

    The same tensors through the same weights give the same bits: before the first update every ratio is
    exactly 1, and where policy and reference are equal every KL exactly 0.
    """
    return of_all_ranks(measure_own_tokens(networks, batches, episodes, temperature, ranks), ranks)


@torch.no_grad()
def measure_own_tokens(
    networks: Networks,
    batches: Sequence[ResponseBatch],
    episodes: int,
    temperature: float,
    ranks: Ranks,
) -> RolloutTokens:
    """The same of this rank's episodes; 0 at the others'. Of all ranks it wants to know the longest response
    alone, before it begins."""
    longest = max(ranks.gather_objects(max(batch.response_mask.shape[1] for batch in batches)))
    device = batches[0].input_ids.device
    mask = torch.zeros((episodes, longest), dtype=torch.bool, device=device)
    names = ("logprobs", "entropies", "reference_logprobs", "sft_logprobs", "values")
    columns = {name: torch.zeros((episodes, longest), device=device) for name in names}

    def keep(name: str, batch: ResponseBatch, numbers: Tensor) -> None:
        columns[name][batch.rows, : numbers.shape[1]] = numbers

    for batch in batches:
        if not len(batch.rows):
            continue
        mask[batch.rows, : batch.response_mask.shape[1]] = batch.response_mask
        if isinstance(networks.critic, ValueHead):
            logits, states = response_logits_and_states(networks.policy, batch, temperature)
            keep("values", batch, batch.spread(networks.critic.values(states)))
        else:
            keep("values", batch, networks.critic.values(batch))
            logits = response_logits(networks.policy, batch, temperature)
        keep("logprobs", batch, batch.spread(token_logprobs(logits, batch.response_tokens)))
        keep("entropies", batch, batch.spread(entropy(logits)))
        del logits
        keep("reference_logprobs", batch, response_logprobs(networks.reference, batch, temperature))
        if networks.sft is not None:
            keep("sft_logprobs", batch, response_logprobs(networks.sft, batch, temperature))
    return RolloutTokens(
        mask,
        columns["logprobs"],
        columns["entropies"],
        columns["reference_logprobs"],
        None if networks.sft is None else columns["sft_logprobs"],
        columns["values"],
    )


def of_all_ranks(own: RolloutTokens, ranks: Ranks) -> RolloutTokens:
    """The numbers of all ranks' episodes together."""
    sft = own.sft_logprobs
    return RolloutTokens(
        response_mask=ranks.sum(own.response_mask.to(torch.uint8)).bool(),
        logprobs=ranks.sum(own.logprobs),
        entropies=ranks.sum(own.entropies),
        reference_logprobs=ranks.sum(own.reference_logprobs),
        sft_logprobs=None if sft is None else ranks.sum(sft),
        values=ranks.sum(own.values),
    )


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last dimension, in nats; tokens of logit −∞ count as 0."""
    return torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1)
