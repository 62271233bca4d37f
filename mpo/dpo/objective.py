"""DPO as an objective of the shared training loop."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import even_passes, rows_at_once
from mpo.config import DPOStage
from mpo.dpo.loss import PairLogprobs, PairTokens, dpo_loss, implicit_rewards, token_means
from mpo.logprobs import response_logprobs, token_logprobs
from mpo.packed_models import packed_logits, reads_packed_rows
from mpo.packed_rows import Family, PackedRow, passes_of, tokens_at_once
from mpo.ragged_pairs import ids_of, lengths_of
from mpo.tokenization import EncodedPair


def pair_passes(
    model: PreTrainedModel, rows: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
) -> Iterable[Sequence[int]]:
    """Pairs in forward passes whose logits the memory holds. tokens, lengths: of each pair, by its number."""
    vocabulary = model.config.get_text_config().vocab_size
    if reads_packed_rows(model):
        return passes_of(rows, tokens, tokens_at_once(model.device, vocabulary))
    return even_passes(rows, max(1, rows_at_once(max(lengths[row] for row in rows), vocabulary) // 2))


@dataclass(frozen=True)
class PairObjective:
    """The objective of DPO: a mean over a step's pairs.

    reference: log-probabilities of every pair, on the CPU.
    """

    pairs: Sequence[EncodedPair]
    reference: PairLogprobs
    config: DPOStage
    pad_id: int

    @cached_property
    def ids(self) -> Sequence[str]:
        """Of the pairs."""
        return ids_of(self.pairs)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each pair's longer row."""
        return lengths_of(self.pairs).longest

    @cached_property
    def tokens(self) -> Sequence[int]:
        """Of each pair: of its prompt and of both responses."""
        return lengths_of(self.pairs).tokens

    def weight(self, row: int) -> float:
        """Every pair counts the same."""
        return 1.0

    def passes(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterable[Sequence[int]]:
        """As many pairs together as the logits' memory allows."""
        return pair_passes(model, rows, self.tokens, self.lengths)

    def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Sums over the pairs: the loss, and as metrics implicit rewards and log-probabilities, in nats."""
        config, pairs = self.config, [self.pairs[row] for row in rows]
        policy = logprobs_of_pairs(model, pairs, self.pad_id)
        reference = PairLogprobs(*(side[list(rows)].to(policy.chosen.device) for side in self.reference))
        tokens = PairTokens(
            policy.chosen.new_tensor([len(pair.chosen_ids) for pair in pairs]),
            policy.rejected.new_tensor([len(pair.rejected_ids) for pair in pairs]),
        )
        sums, means = (policy, reference), (token_means(policy, tokens), token_means(reference, tokens))
        compared = means if config.length_normalised or config.loss == "ipo" else sums
        losses = dpo_loss(*compared, config.beta, config.loss, config.flip_rate)
        if config.sft_coefficient > 0:
            losses = losses - config.sft_coefficient * means[0].chosen
        # TRL reports IPO's rewards of whole responses too.
        rewards = implicit_rewards(*(means if config.length_normalised else sums), config.beta)
        return losses.sum(), pair_metrics(policy, rewards)


def logprobs_of_pairs(model: PreTrainedModel, pairs: Sequence[EncodedPair], pad_id: int) -> PairLogprobs:
    """Log-probabilities of both responses of each pair, from one forward pass.

    Each prompt is computed once where the model reads packed rows, and else with either response.
    """
    if reads_packed_rows(model):
        families = [Family(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in pairs]
        row = PackedRow.of(families, model.device)
        by_token = token_logprobs(packed_logits(model, row), row.targets)
        return PairLogprobs(*row.sums(by_token).view(-1, 2).unbind(-1))
    prompts = [pair.prompt_ids for pair in pairs] * 2
    responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    return PairLogprobs(*response_logprobs(model, prompts, responses, pad_id).chunk(2))


@torch.no_grad()
def pair_metrics(policy: PairLogprobs, rewards: PairLogprobs) -> dict[str, Tensor]:
    """What a step reports of its pairs, summed over them. accuracy: how many have the chosen reward above."""
    gaps = rewards.chosen - rewards.rejected
    return {
        "accuracy": ((gaps.sign() + 1) / 2).sum(),
        "gap": gaps.sum(),
        "reward_chosen": rewards.chosen.sum(),
        "reward_rejected": rewards.rejected.sum(),
        "logprobs_chosen": policy.chosen.sum(),
        "logprobs_rejected": policy.rejected.sum(),
    }
