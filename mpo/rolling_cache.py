"""A key-value cache of sequences that come and go: all end at the same column, each begins at its own.

So one write per layer and step serves every row, whatever its length; a row that joins is written to the left
of the common end, and what no row reaches back to any more is not attended to. transformers' own caches copy
all they hold at every token, and know no row that joins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

FIRST_COLUMNS = 64
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer: (rows, heads, columns, head size)."""


@dataclass
class _Window:
    """Columns that are in use, of all layers: [left, right)."""

    rows: int = 0
    left: int = 0
    right: int = 0
    starts: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.right - self.left


class _Layer(CacheLayerMixin):
    """One layer's buffers; larger than what is in use, so that few tokens move anything."""

    is_sliding = False
    is_compileable = False

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        """Empty buffers, of these states' heads and sizes."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self.held_keys = keys.new_empty((0, keys.shape[1], 0, keys.shape[3]))
        self.held_values = values.new_empty((0, values.shape[1], 0, values.shape[3]))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one more column and return all that are in use. The window moves once every layer has."""
        rows, right = self._window.rows, self._window.right
        end = right + key_states.shape[2]
        self.held_keys[:rows, :, right:end] = key_states
        self.held_values[:rows, :, right:end] = value_states
        seen = slice(self._window.left, end)
        return self.held_keys[:rows, :, seen], self.held_values[:rows, :, seen]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self._window.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that queries will see, and where they begin."""
        return self._window.width + query_length, 0

    def get_max_length(self) -> int:
        """None."""
        return -1

    def hold(self, rows: int, columns: int, kept: slice, at: int) -> None:
        """New buffers of these sizes, in which the columns `kept` begin at `at`."""
        self.held_keys = _moved(self.held_keys, rows, columns, kept, at)
        self.held_values = _moved(self.held_values, rows, columns, kept, at)


def _moved(old: Tensor, rows: int, columns: int, kept: slice, at: int) -> Tensor:
    # Zeros: what a masked column holds is multiplied by a weight of 0, and may be no NaN.
    new = old.new_zeros((rows, old.shape[1], columns, old.shape[3]))
    new[: old.shape[0], :, at : at + kept.stop - kept.start] = old[:, :, kept]
    return new


class RollingCache(Cache):
    """Of one model; rows are numbered from 0, and the last takes the number of one that is removed."""

    def __init__(self) -> None:
        self._window = _Window()
        self._layers: list[_Layer] = []
        super().__init__(layers=self._layers)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """How many sequences it holds."""
        return self._window.rows

    @property
    def starts(self) -> list[int]:
        """By row, the number of columns in use before its first."""
        return [start - self._window.left for start in self._window.starts]

    @property
    def width(self) -> int:
        """Columns in use."""
        return self._window.width

    def add(self, layers: Layers, lengths: Sequence[int]) -> None:
        """Rows to join, by their keys and values, of which a row's last `length` columns are its own."""
        window, new = self._window, max(lengths)
        if not self._layers:
            self._layers += [_Layer(window, keys, values) for keys, values in layers]
        rows = window.rows + len(lengths)
        self._hold(rows, max(window.width, new), room=1)
        for layer, (keys, values) in zip(self._layers, layers, strict=True):
            place = (slice(window.rows, rows), slice(None), slice(window.right - new, window.right))
            layer.held_keys[place] = keys[:, :, keys.shape[2] - new :]
            layer.held_values[place] = values[:, :, values.shape[2] - new :]
        window.starts += [window.right - length for length in lengths]
        window.rows, window.left = rows, min(window.starts)

    def make_room(self) -> None:
        """For one more column, which the next forward writes."""
        self._hold(self._window.rows, self._window.width, room=1)

    def advance(self) -> None:
        """Every layer has written its column."""
        self._window.right += 1

    def remove(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        window, last = self._window, self._window.rows - 1
        if row != last:
            for layer in self._layers:
                seen = slice(window.left, window.right)
                layer.held_keys[row, :, seen] = layer.held_keys[last, :, seen]
                layer.held_values[row, :, seen] = layer.held_values[last, :, seen]
            window.starts[row] = window.starts[last]
        window.starts.pop()
        window.rows = last
        window.left = min(window.starts, default=window.right)

    def _hold(self, rows: int, width: int, room: int) -> None:
        """Buffers for so many rows, and for `width` columns that end where there is room for more."""
        window, keys = self._window, self._layers[0].held_keys
        have_rows, have_columns = keys.shape[0], keys.shape[2]
        if rows <= have_rows and window.right >= width and window.right + room <= have_columns:
            return
        new_rows = have_rows if rows <= have_rows else max(rows, min(2 * have_rows, rows + 16))
        columns = max(FIRST_COLUMNS, 2 * (width + room))
        kept, right = slice(window.left, window.right), max(width, window.width)
        shift = right - window.right
        for each in self._layers:
            each.hold(new_rows, columns, kept, right - window.width)
        window.starts = [start + shift for start in window.starts]
        window.left, window.right = window.left + shift, right


def layers_of(cache: DynamicCache) -> Layers:
    """What a forward over whole prompts has left in a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc, union-attr]
