"""Prompts with their responses in one row without padding, each prompt once however many responses it has.

Gou & Nguyen's method trains on pairs, whose two responses share a prompt. Laid out as
`prompt | chosen | rejected | next prompt | …`, no token is computed twice and none is padding.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpo.batches import LOGITS_AT_ONCE

TOKENS_AT_ONCE = {"cpu": 2**11, "cuda": 2**14}
"""Tokens of a packed forward pass by the kind of device: enough to keep it busy; more cost memory alone."""


class Family(NamedTuple):
    """A prompt and the responses to it, as token ids; neither the prompt nor the list is empty."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Of the prompt and of all responses."""
        return len(self.prompt) + sum(map(len, self.responses))


class Span(NamedTuple):
    """Tokens of one sequence from `start` to `stop`, as queries: they see from `first` on each up to itself,
    and from `prompt` on the tokens of a prompt that stands apart from them."""

    start: int
    stop: int
    first: int
    prompt: int = 0
    seen_of_prompt: int = 0

    @property
    def queries(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def keys(self) -> int:
        """That the last of the queries sees."""
        return self.seen_of_prompt + self.stop - self.first


def narrowed(spans: Sequence[Span], places: Sequence[int]) -> list[Span]:
    """Of each span the shortest that holds all of the places that lie in it; those without one are left out.

    places: ascending.
    """
    found = []
    for span in spans:
        here = places[bisect_left(places, span.start) : bisect_left(places, span.stop)]
        if here:
            found.append(span._replace(start=here[0], stop=here[-1] + 1))
    return found


def spread(states: Tensor, places: Tensor, tokens: int) -> Tensor:
    """States of some places among all tokens of a row: (1, tokens, width), 0 elsewhere, of (1, n, width)."""
    return states.new_zeros((1, tokens, states.shape[2])).index_copy(1, places, states)


@dataclass(frozen=True)
class PackedRow:
    """Families one after another in one row of T tokens.

    input_ids, position_ids: (1, T); a response's positions follow its prompt's. blocks: of each family the
    tokens of the prompt with its first response, and of each further response. prompts: tokens of each
    family's prompt. before, targets: (tokens of responses,): where each is predicted, and what it is; owners:
    the number of its response, counted over all families. ends: (responses,), where each one's last token is.
    """

    input_ids: Tensor
    position_ids: Tensor
    prompts: Sequence[int]
    blocks: Sequence[Sequence[int]]
    before: Tensor
    targets: Tensor
    owners: Tensor
    ends: Tensor

    @classmethod
    def of(cls, families: Sequence[Family], device: torch.device | str = "cpu") -> "PackedRow":
        """The families in their order, on a device."""
        ids, positions = list[int](), list[int]()
        before, owners, ends = list[int](), list[int](), list[int]()
        for prompt, responses in families:
            last = len(ids) + len(prompt) - 1
            ids += prompt
            positions += range(len(prompt))
            for response in responses:
                start = len(ids)
                if response:
                    before += chain((last,), range(start, start + len(response) - 1))
                owners += repeat(len(ends), len(response))
                ids += response
                positions += range(len(prompt), len(prompt) + len(response))
                ends.append(len(ids) - 1 if response else last)
        targets = list(chain.from_iterable(chain.from_iterable(family.responses) for family in families))
        blocks = [
            [len(prompt) + len(responses[0]), *(len(response) for response in responses[1:])]
            for prompt, responses in families
        ]

        def on_device(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=device)

        return cls(
            on_device(ids)[None],
            on_device(positions)[None],
            [len(family.prompt) for family in families],
            blocks,
            on_device(before),
            on_device(targets),
            on_device(owners),
            on_device(ends),
        )

    @cached_property
    def spans(self) -> Sequence[Span]:
        """The row in its order: each prompt with its first response, and each further one, if not empty."""
        found, start = list[Span](), 0
        for tokens, family in zip(self.prompts, self.blocks, strict=True):
            prompt, seen = start, 0
            for size in family:
                if size:
                    found.append(Span(start, start + size, start, prompt, seen))
                start, seen = start + size, tokens
        return found

    def inputs(self) -> dict[str, Any]:
        """What a model's forward takes. transformers puts no mask of its own in place of one of four
        dimensions."""
        nothing = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=self.input_ids.device)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": nothing,
            "use_cache": False,
            "packed": self,
        }

    def sums(self, by_token: Tensor) -> Tensor:
        """Sums over each response of a number a token: (responses,) of (tokens of responses,)."""
        return by_token.new_zeros(len(self.ends)).index_add(0, self.owners, by_token)


def tokens_at_once(device: torch.device, numbers_a_token: int = 1) -> int:
    """Tokens of a packed forward pass. numbers_a_token: logits that it keeps of each, or other numbers."""
    return max(1, min(TOKENS_AT_ONCE.get(device.type, 2**14), LOGITS_AT_ONCE // numbers_a_token))


def passes_of(rows: Sequence[int], tokens: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Rows, in their order, in passes of nearly equal size: at most so many tokens, but one row at least.

    tokens: of each row, by its number.
    """
    whole = sum(tokens[row] for row in rows)
    aim = whole / max(1, -(-whole // at_once))
    here, held = list[int](), 0
    for row in rows:
        if here and (held + tokens[row] > at_once or held + tokens[row] / 2 > aim):
            yield here
            here, held = [], 0
        here.append(row)
        held += tokens[row]
    if here:
        yield here
