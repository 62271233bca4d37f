"""Length-grouped, padded batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_BATCHES = 8
"""Batches that are sorted by length together: enough to save padding, few enough to keep the order random."""

LOGITS_AT_ONCE = 2**28
"""Logits that a forward pass may hold: 1 GiB in fp32, and as much again for what is computed from them."""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of token ids, padded on the right.

    input_ids: (batch, longest), int64. real_mask: the same shape, True at real tokens; made from lengths,
    since a padding id may also occur as a real token.
    """

    input_ids: Tensor
    real_mask: Tensor

    def to(self, device: torch.device) -> "PaddedBatch":
        """The same batch on a device."""
        return PaddedBatch(self.input_ids.to(device), self.real_mask.to(device))


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> PaddedBatch:
    """Token ids of several lengths as one batch. Raises ValueError where there is no row."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    for row, ids in zip(input_ids, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return PaddedBatch(input_ids, length_mask([len(row) for row in rows], longest))


def length_mask(lengths: Sequence[int], longest: int) -> Tensor:
    """(rows, longest), boolean: True at the first lengths[i] positions of row i."""
    return torch.arange(longest).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of nearly equal length, longest first: for passes whose order does not matter.

    Longest first, so that a batch that does not fit the memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Row numbers in random batches whose rows are of similar length; every row once.

    Rows are shuffled, sorted by length within groups of `GROUP_BATCHES` batches, cut into batches, and the
    batches shuffled. Only the last one may be smaller.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    group = batch_size * GROUP_BATCHES
    batches = []
    for start in range(0, len(order), group):
        members = sorted(order[start : start + group], key=lambda i: -lengths[i])
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    whole = len(lengths) // batch_size
    shuffled = torch.randperm(whole, generator=generator).tolist()
    return [batches[i] for i in shuffled] + batches[whole:]


def optimizer_steps(rows: int, batch_rows: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a training: `epochs` passes over the rows, at most `max_steps`."""
    steps = -(-rows // batch_rows) * epochs
    return steps if max_steps is None else min(steps, max_steps)


def rows_at_once(longest: int, vocabulary: int) -> int:
    """Rows of a forward pass whose logits take at most `LOGITS_AT_ONCE` numbers: at least 1, at most 32.

    longest: tokens of the longest row.
    """
    return max(1, min(32, LOGITS_AT_ONCE // (longest * vocabulary)))


def even_passes(rows: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    """Rows, in their order, so many at once; the last ones may be fewer."""
    return (rows[start : start + at_once] for start in range(0, len(rows), at_once))
