"""Keys and values of prompts that were read lately: one that begins like another is read on from there."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import DynamicCache

from mpo.rolling_cache import Layers

LEAST_TOKENS = 16
"""A shorter common beginning is read as fast as it is looked up and copied."""


class PrefixCache:
    """Of one model's weights; the prompts used least recently go first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget, self._bytes = budget_bytes, 0
        self._kept: OrderedDict[tuple[int, ...], tuple[npt.NDArray[np.int64], Layers]] = OrderedDict()
        self.tokens_read, self.tokens_spared = 0, 0

    @property
    def bytes(self) -> int:
        """Held."""
        return self._bytes

    def longest(self, prompt: Sequence[int]) -> Layers | None:
        """What is known of the longest beginning of a prompt; None where it is too short to be of use.

        At least the last token is left to be read: its logits are wanted.
        """
        ids = np.asarray(prompt, dtype=np.int64)
        best, common = None, LEAST_TOKENS - 1
        for key, (kept, _) in self._kept.items():
            length = _common(ids[:-1], kept)
            if length > common:
                best, common = key, length
        self.tokens_read += len(prompt)
        if best is None:
            return None
        self.tokens_spared += common
        self._kept.move_to_end(best)
        return [(keys[:, :, :common], values[:, :, :common]) for keys, values in self._kept[best][1]]

    def all_but_last(self, prompt: Sequence[int]) -> Layers | None:
        """What is known of a prompt that was read as a whole before, up to its last token; else None."""
        kept = self._kept.get(tuple(prompt))
        if kept is None:
            return None
        self._kept.move_to_end(tuple(prompt))
        self.tokens_read += len(prompt)
        self.tokens_spared += len(prompt) - 1
        return [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in kept[1]]

    def keep(self, prompt: Sequence[int], layers: Layers) -> None:
        """Remember a prompt that was read, where it fits."""
        key, size = tuple(prompt), _bytes(layers)
        if key in self._kept or size > self._budget or len(prompt) < LEAST_TOKENS:
            return
        while self._bytes + size > self._budget:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1][1])
        # Copies: what was read together with longer prompts is a view of all of them.
        own = [(keys.clone(), values.clone()) for keys, values in layers]
        self._kept[key] = np.asarray(prompt, dtype=np.int64), own
        self._bytes += size

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._bytes = 0


def seeded(prefix: Layers) -> DynamicCache:
    """A cache that goes on from a prompt's beginning."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys, values, layer)
    return cache


def joined(rows: Sequence[Layers]) -> Layers:
    """Rows of different lengths as one batch, padded on the left with zeros."""
    width = max(of_row[0][0].shape[2] for of_row in rows)
    if len(rows) == 1:
        return rows[0]
    layers: Layers = []
    for of_layer in zip(*rows, strict=True):
        keys = of_layer[0][0].new_zeros((len(rows), of_layer[0][0].shape[1], width, of_layer[0][0].shape[3]))
        values = of_layer[0][1].new_zeros(
            (len(rows), of_layer[0][1].shape[1], width, of_layer[0][1].shape[3])
        )
        for row, (k, v) in enumerate(of_layer):
            keys[row, :, width - k.shape[2] :], values[row, :, width - v.shape[2] :] = k[0], v[0]
        layers.append((keys, values))
    return layers


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def _bytes(layers: Layers) -> int:
    return sum(t.numel() * t.element_size() for pair in layers for t in pair)
