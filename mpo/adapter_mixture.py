"""Adapters over one base that answer side by side: each row of a batch runs with its own.

Rows of several adapters share every product with the base's weights; what an adapter adds, its two small
products, is kept from the rows of others by zeros between the two. peft's adapters of a base are active one
at a time, or row by row by an argument of the whole forward, which layers called one by one do not take.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpo.adapters import Adapter
from mpo.errors import UnusableModel

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""Of peft's names: before a layer's path in the model, and after it."""


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a layer: up @ (down @ x). down: (rank, inputs); up: (outputs, rank), scaled."""

    down: Tensor
    up: Tensor


def low_rank_layers(adapter: Adapter) -> dict[str, LowRank]:
    """By the path of the layer in its model. Raises UnusableModel where the adapter is of another kind."""
    config, weights = adapter.config, adapter.low_rank
    paths = {name.removeprefix(PREFIX).removesuffix(DOWN) for name in weights if name.endswith(DOWN)}
    whole = {f"{PREFIX}{path}{end}" for path in paths for end in (DOWN, UP)}
    patterned = config.rank_pattern or config.alpha_pattern or config.use_rslora or config.use_dora
    if patterned or not paths or set(weights) != whole:
        raise UnusableModel("the adapter holds more than two low-rank weights a layer")
    scale = config.lora_alpha / config.r
    return {
        path: LowRank(weights[f"{PREFIX}{path}{DOWN}"], weights[f"{PREFIX}{path}{UP}"] * scale)
        for path in sorted(paths)
    }


class AdapterMixture:
    """A base and named adapters; outside `rows` the base runs as it is."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._layers: dict[str, _MixedLayer] = {}
        self._batch = _Batch([])

    def add(self, name: str, layers: Mapping[str, LowRank]) -> None:
        """An adapter, copied to where the base is. Raises UnusableModel where it does not fit, or where its
        numbers are not finite: those would reach the rows of others."""
        for path, low_rank in layers.items():
            self._check(path, low_rank)
        for path, low_rank in layers.items():
            if path not in self._layers:
                self._layers[path] = _MixedLayer(self, self.model.get_submodule(path))
            weight: Any = self.model.get_submodule(path).weight
            held = LowRank(low_rank.down.to(weight), low_rank.up.to(weight))
            self._layers[path].adapters[name] = held

    def remove(self, name: str) -> None:
        """An adapter whose rows have all ended."""
        for path, layer in list(self._layers.items()):
            layer.adapters.pop(name, None)
            layer.forget()
            if not layer.adapters:
                layer.handle.remove()
                del self._layers[path]

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within, row i of whatever the model reads runs with the adapter names[i]; None: with the base."""
        before, self._batch = self._batch, _Batch(names)
        try:
            yield
        finally:
            self._batch = before

    @property
    def batch(self) -> "_Batch":
        """Whose the rows are now."""
        return self._batch

    def _check(self, path: str, low_rank: LowRank) -> None:
        try:
            weight: Any = self.model.get_submodule(path).weight
        except AttributeError:
            raise UnusableModel("the adapter does not fit the base's layers", layer=path) from None
        expected = {low_rank.up.shape[0], low_rank.down.shape[1]}
        if set(weight.shape) != expected or low_rank.up.shape[1] != low_rank.down.shape[0]:
            raise UnusableModel("the adapter does not fit the base's layers", layer=path)
        if not all(bool(torch.isfinite(part).all()) for part in (low_rank.down, low_rank.up)):
            raise UnusableModel("the adapter's weights are not finite", layer=path)


class _Batch:
    """Whose the rows of a batch are."""

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = names
        self.distinct = tuple(sorted({name for name in names if name is not None}))
        self.is_whole = len(self.distinct) == 1 and None not in names
        self._masks: dict[tuple[tuple[str, int], ...], Tensor] = {}

    def mask(self, columns: tuple[tuple[str, int], ...], like: Tensor) -> Tensor:
        """(rows, all ranks): where a column is of another adapter. columns: (name, rank) in order."""
        if columns not in self._masks:
            of_column = [name for name, rank in columns for _ in range(rank)]
            others = [[name != of_row for name in of_column] for of_row in self.names]
            self._masks[columns] = torch.tensor(others, device=like.device)
        return self._masks[columns]


class _MixedLayer:
    """A linear layer of the base, and what adapters add to it."""

    def __init__(self, mixture: AdapterMixture, layer: nn.Module) -> None:
        self.adapters: dict[str, LowRank] = {}
        self.handle = layer.register_forward_hook(self._add)
        self._mixture = mixture
        self.forget()

    def forget(self) -> None:
        """What was joined of the adapters: they are others now."""
        self._joined: tuple[tuple[str, ...], LowRank] | None = None

    def _add(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        batch = self._mixture.batch
        columns = tuple(
            (name, len(self.adapters[name].down)) for name in batch.distinct if name in self.adapters
        )
        if not columns:
            return output
        joined = self._join(tuple(name for name, _ in columns))
        low: Tensor = nn.functional.linear(args[0], joined.down)
        if not batch.is_whole:
            others = batch.mask(columns, low)
            low = low.masked_fill(others if low.dim() == 2 else others[:, None], 0.0)
        return output + nn.functional.linear(low, joined.up)

    def _join(self, names: tuple[str, ...]) -> LowRank:
        """Adapters one below another: their products are two, however many they are."""
        if len(names) == 1:
            return self.adapters[names[0]]
        if self._joined is None or self._joined[0] != names:
            held = [self.adapters[name] for name in names]
            down, up = torch.cat([each.down for each in held]), torch.cat([each.up for each in held], dim=1)
            self._joined = names, LowRank(down, up)
        return self._joined[1]
