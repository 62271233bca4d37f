"""Keys and values of prompts that were read lately: one that begins like another is read on from there."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from transformers import DynamicCache

from mpo.rolling_cache import Layers

LEAST_TOKENS = 16
"""A shorter common beginning is read as fast as it is looked up and copied. Found by blocks of as many."""

Key = tuple[int, ...]


class PrefixCache:
    """Of one model's weights; the prompts used least recently go first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget, self._bytes = budget_bytes, 0
        self._kept: OrderedDict[Key, Layers] = OrderedDict()
        self._beginnings: dict[int, Key] = {}
        self.tokens_read, self.tokens_spared = 0, 0

    @property
    def bytes(self) -> int:
        """Held."""
        return self._bytes

    def longest(self, prompt: Sequence[int]) -> Layers | None:
        """What is known of the beginning of a prompt; None where that is too short to be of use.

        At least the last token is left to be read: its logits are wanted. Found by whole blocks: of two kept
        prompts that begin alike it may be either, which differ by less than a block.
        """
        self.tokens_read += len(prompt)
        key = self._like(prompt[:-1])
        if key is None:
            return None
        common = _common(prompt[:-1], key)
        self.tokens_spared += common
        self._kept.move_to_end(key)
        return [(keys[:, :, :common], values[:, :, :common]) for keys, values in self._kept[key]]

    def all_but_last(self, prompt: Sequence[int]) -> Layers | None:
        """What is known of a prompt that was read as a whole before, up to its last token; else None."""
        key = tuple(prompt)
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        self.tokens_read += len(prompt)
        self.tokens_spared += len(prompt) - 1
        return [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in kept]

    def keep(self, prompt: Sequence[int], layers: Layers) -> None:
        """Remember a prompt that was read, where it fits."""
        key, size = tuple(prompt), _bytes(layers)
        if key in self._kept or size > self._budget or len(prompt) < LEAST_TOKENS:
            return
        while self._bytes + size > self._budget:
            self._forget(next(iter(self._kept)))
        # Copies: what was read together with longer prompts is a view of all of them.
        self._kept[key] = [(keys.clone(), values.clone()) for keys, values in layers]
        self._bytes += size
        for beginning in _beginnings(key):
            self._beginnings[beginning] = key

    def _like(self, prompt: Sequence[int]) -> Key | None:
        """A kept prompt that shares the most whole blocks with this one."""
        for beginning in reversed(_beginnings(prompt)):
            key = self._beginnings.get(beginning)
            # The hash of a block may be another's too.
            if key is not None and _common(prompt, key) >= LEAST_TOKENS:
                return key
        return None

    def _forget(self, key: Key) -> None:
        self._bytes -= _bytes(self._kept.pop(key))
        for beginning in _beginnings(key):
            if self._beginnings.get(beginning) == key:
                del self._beginnings[beginning]


def _beginnings(prompt: Sequence[int]) -> list[int]:
    """Hashes of the first block, the first two, …"""
    found, so_far = [], 0
    for start in range(0, len(prompt) - LEAST_TOKENS + 1, LEAST_TOKENS):
        so_far = hash((so_far, *prompt[start : start + LEAST_TOKENS]))
        found.append(so_far)
    return found


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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(differing[0]) if len(differing) else length


def _bytes(layers: Layers) -> int:
    return sum(t.numel() * t.element_size() for pair in layers for t in pair)
