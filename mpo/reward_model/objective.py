"""Reward models' objective: pairs as rows of a training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import even_passes
from mpo.config import RewardModelStage
from mpo.packed_models import reads_packed_rows
from mpo.packed_rows import passes_of, tokens_at_once
from mpo.ragged_pairs import ids_of, lengths_of
from mpo.records import PreferencePair
from mpo.reward_model.loss import bradley_terry_loss
from mpo.reward_model.score import pair_scores
from mpo.tokenization import EncodedPair

TOKENS_AT_ONCE = 2**13
"""Tokens of a forward pass at most: what is kept for the backward pass grows with them."""

PAIRS_AT_ONCE = 32


@dataclass(frozen=True)
class PairRows:
    """Pairs that a reward model trains on: token ids, and of each its margin, in reward units, and weight."""

    encoded: Sequence[EncodedPair]
    margins: Sequence[float]
    weights: Sequence[float]

    @classmethod
    def of(
        cls, pairs: Iterable[PreferencePair], encoded: Sequence[EncodedPair], config: RewardModelStage
    ) -> "PairRows":
        """The pairs with their own margins and weights, as far as the configuration asks for these; where
        a pair has none, its margin is 0 and its weight 1. pairs: those of `encoded`, gone through once."""
        margins, weights = list[float](), list[float]()
        for pair in pairs:
            margins.append(pair.margin or 0.0 if config.margin else 0.0)
            weights.append(1.0 if pair.weight is None or not config.weight else pair.weight)
        return cls(encoded, margins, weights)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Of the pairs."""
        return ids_of(self.encoded)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each pair's longer sequence."""
        return lengths_of(self.encoded).longest

    @cached_property
    def tokens(self) -> Sequence[int]:
        """Of each pair: of its prompt and of both responses."""
        return lengths_of(self.encoded).tokens


@dataclass(frozen=True)
class PairRewards:
    """The objective of reward models: Bradley-Terry, a mean over the pairs of a step by their weights.

    A pair's prompt is computed once where the model reads packed rows; else both responses are rows of one
    padded batch.
    """

    rows: PairRows
    pad_id: int
    label_smoothing: float
    centring: float

    @property
    def ids(self) -> Sequence[str]:
        """Of the pairs."""
        return self.rows.ids

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each pair's longer sequence."""
        return self.rows.lengths

    @property
    def tokens(self) -> Sequence[int]:
        """Of each pair: of its prompt and of both responses."""
        return self.rows.tokens

    def weight(self, row: int) -> float:
        """As the data say; 1 where they do not."""
        return self.rows.weights[row]

    def passes(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterable[Sequence[int]]:
        """As many pairs together as the memory of a pass allows."""
        if reads_packed_rows(model):
            return passes_of(rows, self.rows.tokens, tokens_at_once(model.device))
        longest = max(self.lengths[row] for row in rows)
        return even_passes(rows, max(1, min(PAIRS_AT_ONCE, TOKENS_AT_ONCE // (2 * longest))))

    def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Losses times weights, summed; sums of accuracy (ties count half), gap, and pairs' mean rewards."""
        pairs = [self.rows.encoded[row] for row in rows]
        scores = pair_scores(model, pairs, self.pad_id)
        chosen, rejected = scores.unbind(-1)
        same = torch.tensor([pair.chosen_ids == pair.rejected_ids for pair in pairs], device=scores.device)
        # AdamW would make a full step of the rounding by which two equal responses differ.
        rejected = torch.where(same, chosen, rejected)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            margin=scores.new_tensor([self.rows.margins[row] for row in rows]),
            label_smoothing=self.label_smoothing,
            centring=self.centring,
        )
        weights = scores.new_tensor([self.rows.weights[row] for row in rows])
        with torch.no_grad():
            gaps = chosen - rejected
            metrics = {
                "accuracy": (gaps.sign() + 1).sum() / 2,
                "gap": gaps.sum(),
                "reward_mean": scores.sum() / 2,
            }
        return (weights * losses).sum(), metrics
