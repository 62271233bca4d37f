"""The processes of one machine that train together, as the code that trains sees them.

Each rank holds the whole model and takes its share of every step's rows; sums over all ranks make the rest of
a step the same everywhere. Imports no torch: whoever trains alone, or not at all, pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Thing = TypeVar("Thing")


class Ranks(Protocol):
    """All ranks call the same methods in the same order: each call waits for everybody's.

    Every method raises what another rank failed of, or RankFailed where one ended without a word.
    """

    @property
    def number(self) -> int:
        """This rank's, from 0. Rank 0 alone writes files and reports."""
        ...

    @property
    def count(self) -> int:
        """Of the ranks."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether full weights in training are to be in shards, a part on each rank."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, into which all ranks' tensors of that shape were added: the same bits on each."""
        ...

    def gather_objects(self, thing: Thing) -> list[Thing]:
        """Everybody's, by number. Small things: they are pickled."""
        ...


@dataclass(frozen=True)
class OneRank:
    """A process that trains alone: nothing waits, nothing is copied."""

    number: int = 0
    count: int = 1
    sharded: bool = False

    def sum(self, tensor: Tensor) -> Tensor:
        """Its own."""
        return tensor

    def gather_objects(self, thing: Thing) -> list[Thing]:
        """Its own."""
        return [thing]


ALONE = OneRank()


def share(ranks: Ranks, sizes: Sequence[int], turn: int = 0) -> range:
    """Places of this rank's part: consecutive, and all parts of as equal size as whole places allow.

    sizes: of each place, above 0. A place belongs to the part in which its middle lies; parts may be empty.
    turn: deals the parts to the ranks in turn, so that the same ones are not left empty every time.
    """
    number = (ranks.number + turn) % ranks.count
    whole = sum(sizes)
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    owners = [min(int(ranks.count * middle / whole), ranks.count - 1) for middle in middles]
    start = sum(owner < number for owner in owners)
    return range(start, start + owners.count(number))


def any_of(ranks: Ranks, *flags: bool) -> tuple[bool, ...]:
    """Of each flag, whether it is set on any rank."""
    return tuple(map(any, zip(*ranks.gather_objects(flags), strict=True)))
