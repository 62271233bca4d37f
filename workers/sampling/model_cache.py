"""Loaded models within a memory budget: the least recently used one goes first."""

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.sampling import ModelFiles
from core.storage import Storage
from mpo.adapter_mixture import LowRank
from mpo.adapters import ADAPTER, ORIGIN
from mpo.continuous_batch import Voice
from mpo.errors import MPOError, UnusableModel
from mpo.prefix_cache import PrefixCache
from workers.sampling.loading import (
    Kind,
    LoadedModel,
    LoadedTokenizer,
    bytes_of_weights,
    check_kind,
    load_low_rank,
    load_whole,
    read_tokenizer,
)
from workers.sampling.refusals import LOADING, Refused

MAX_TOKENIZERS = 64
PREFIX_BYTES, PREFIX_SHARE = 64 << 20, 8
"""Keys and values of prompts may take so many bytes a model, and no more than this part of its network's."""
SOON_BYTES, SOON_SECONDS = 256 << 20, 1.0
"""Where nothing else is to be done, a small model is waited for."""

Key = tuple[Kind, str]


class NoRoom(Exception):
    """All memory is taken by models that are answering: wait until one of them has nothing to do."""


class Loading(MPOError):
    """The model is being loaded: ask again soon."""

    code = LOADING


@dataclass(frozen=True)
class _Load:
    """What another thread is reading: a model, or an adapter of `base`, which stays meanwhile."""

    future: Future[LoadedModel] | Future[Mapping[str, LowRank]]
    bytes: int
    prefix_bytes: int
    base: LoadedModel | None
    since: float


class ModelCache:
    """Models by kind and digest, for one thread; another loads. copies: for files that lie elsewhere.

    A policy that was trained as an adapter shares the network of its base, where the base's files are there.
    pinned: names of models that stay once they are loaded.
    """

    def __init__(self, store: Storage, budget_bytes: int, copies: Path, pinned: Collection[str] = ()) -> None:
        self._store, self._budget, self._copies = store, budget_bytes, copies
        self._pinned_names, self._pinned = frozenset(pinned), set[str]()
        self._models: OrderedDict[Key, LoadedModel] = OrderedDict()
        self._tokenizers: OrderedDict[str, LoadedTokenizer] = OrderedDict()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loads: dict[Key, _Load] = {}
        self._apart: set[Key] = set()

    @property
    def held(self) -> list[Key]:
        """What is loaded, least recently used first."""
        return list(self._models)

    @property
    def bytes(self) -> int:
        """Of all models, with those that are being loaded."""
        coming = sum(load.bytes for load in self._loads.values())
        return coming + sum(held.bytes for held in self._models.values())

    def close(self) -> None:
        """End the thread that loads, once it is done with what it loads."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def tokenizer(self, files: ModelFiles) -> LoadedTokenizer:
        """The tokenizer alone. Raises Refused, UnusableModel."""
        if files.sha256 not in self._tokenizers:
            self._tokenizers[files.sha256] = read_tokenizer(self._folder(files))
            while len(self._tokenizers) > MAX_TOKENIZERS:
                self._tokenizers.popitem(last=False)
        self._tokenizers.move_to_end(files.sha256)
        return self._tokenizers[files.sha256]

    def model(self, files: ModelFiles, kind: Kind, in_use: Collection[str] = ()) -> LoadedModel:
        """The model. in_use: digests of those that must stay; others make room.

        Raises Loading until it is there, NoRoom, Refused, UnusableModel.
        """
        key = (kind, files.sha256)
        if key not in self._models:
            self._models[key] = self._loaded(key, files, in_use)
            if files.name in self._pinned_names:
                self._pinned.add(files.sha256)
        held = self._models[key]
        if held.network != held.digest:
            self._models.move_to_end((kind, held.network))
        self._models.move_to_end(key)
        return held

    def _loaded(self, key: Key, files: ModelFiles, in_use: Collection[str]) -> LoadedModel:
        if key not in self._loads:
            self._loads[key] = self._begin(key, files, in_use)
        load = self._loads[key]
        if not in_use and load.bytes <= SOON_BYTES:
            with suppress(TimeoutError):
                load.future.exception(SOON_SECONDS)
        if not load.future.done():
            seconds = time.monotonic() - load.since
            detail = f"{files.name!r} is being loaded: {load.bytes / 1e6:,.0f} MB, begun {seconds:.0f} s ago"
            raise Loading(detail, param="model")
        del self._loads[key]
        if load.base is None:
            whole = load.future.result()
            assert isinstance(whole, LoadedModel)
            return whole
        try:
            return _adapted(load, load.base, files.sha256)
        except UnusableModel:
            self._apart.add(key)
            return self._loaded(key, files, in_use)

    def _begin(self, key: Key, files: ModelFiles, in_use: Collection[str]) -> _Load:
        folder = self._folder(files)
        check_kind(folder, files.name, key[0])
        base = self._base(key, folder, files, in_use)
        weights = bytes_of_weights(folder if base is None else folder / ADAPTER)
        network, beside = (weights, 0) if base is None else (base.bytes, base.bytes)
        prefixes = min(PREFIX_BYTES, network // PREFIX_SHARE, max(0, self._budget - weights - beside))
        size = weights + prefixes
        self._make_room(files.name, size, in_use if base is None else {*in_use, base.digest})
        now = time.monotonic()
        if base is None or files.base is None:
            whole = self._loader.submit(load_whole, key[0], folder, files.sha256, prefixes, size)
            return _Load(whole, size, prefixes, None, now)
        adapter = self._loader.submit(load_low_rank, folder, self._folder(files.base))
        return _Load(adapter, size, prefixes, base, now)

    def _base(self, key: Key, folder: Path, files: ModelFiles, in_use: Collection[str]) -> LoadedModel | None:
        """What the model is an adapter of; None where it is loaded whole, as its folder holds it too."""
        is_adapter = key[0] == "policy" and (folder / ADAPTER / ORIGIN).is_file()
        if files.base is None or key in self._apart or not is_adapter:
            return None
        with suppress(Refused, UnusableModel):
            base = self.model(files.base, "policy", in_use)
            if base.bytes + bytes_of_weights(folder / ADAPTER) <= self._budget:
                return base
        self._apart.add(key)
        return None

    def _make_room(self, name: str, wanted: int, in_use: Collection[str]) -> None:
        if wanted > self._budget:
            raise Refused(
                f"{name!r} takes {wanted:,} bytes, and the sampler may hold {self._budget:,} "
                "(MPO_SAMPLER_MEMORY_BYTES)",
                code="model_too_large",
                param="model",
            )
        stays = self._staying(in_use)
        for key in list(self._models):
            if wanted + self.bytes <= self._budget:
                return
            if key in self._models and key[1] not in stays:
                self._drop(key)
        if wanted + self.bytes > self._budget:
            raise NoRoom

    def _staying(self, in_use: Collection[str]) -> set[str]:
        """Digests of models that must stay, and of the networks that they run on."""
        stays = {*in_use, *self._pinned}
        networks = {held.network for held in self._models.values() if held.digest in stays}
        return stays | networks | {load.base.digest for load in self._loads.values() if load.base is not None}

    def _drop(self, key: Key) -> None:
        """A model, and those that run on its network."""
        held = self._models.pop(key)
        if held.voice.adapter is not None:
            held.mixture.remove(held.voice.adapter)
        for other, each in list(self._models.items()):
            if each.mixture is held.mixture and held.voice.adapter is None:
                del self._models[other]

    def _folder(self, files: ModelFiles) -> Path:
        copy = self._copies / files.sha256
        try:
            folder = copy if copy.is_dir() else self._store.fetch(files.location, copy)
        except FileNotFoundError:
            folder = None
        if folder is None or not (folder / "config.json").is_file():
            raise Refused(
                f"The files of {files.name!r} are gone", code="model_files_gone", status=404, param="model"
            )
        return folder


def _adapted(load: _Load, base: LoadedModel, digest: str) -> LoadedModel:
    """A model on its base's network. Raises UnusableModel where it does not fit."""
    layers = load.future.result()
    assert not isinstance(layers, LoadedModel)
    # Not by the thread that loads: the network may be running meanwhile.
    base.mixture.add(digest, layers)
    voice = Voice(digest, PrefixCache(load.prefix_bytes))
    return LoadedModel(digest, base.network, base.mixture, voice, load.bytes)
