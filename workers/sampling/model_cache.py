"""Loaded models within a memory budget: the least recently used one goes first."""

import json
import time
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.sampling import ModelFiles
from core.storage import Storage
from mpo.errors import MPOError
from mpo.lengths import named_context, text_settings
from mpo.policies import load_policy, load_reward_model, training_device
from mpo.prefix_cache import PrefixCache
from mpo.tokenization import Terminators, load_tokenizer, terminators
from workers.sampling.refusals import LOADING, Refused
from workers.sampling.spelling import Speller

Kind = Literal["policy", "reward_model"]
DEFAULT_CONTEXT_TOKENS = 1024
MAX_TOKENIZERS = 64
PREFIX_BYTES, PREFIX_SHARE = 64 << 20, 8
"""Keys and values of prompts may take so many bytes a model, and no more than this part of its weights'."""
SOON_BYTES, SOON_SECONDS = 256 << 20, 1.0
"""Where nothing else is to be done, a small model is waited for."""
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class LoadedTokenizer:
    """A model folder's tokenizer, what ends a response by it, and how it spells."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    speller: Speller
    vocabulary: int
    context_tokens: int

    @cached_property
    def terminators(self) -> Terminators:
        """What ends a response; raises UnusableModel where nothing does."""
        return terminators(self.folder, self.tokenizer)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. bytes: of its parameters, and what prompts that it has read may take."""

    model: PreTrainedModel
    prefixes: PrefixCache
    bytes: int


class NoRoom(Exception):
    """All memory is taken by models that are answering: wait until one of them has nothing to do."""


class Loading(MPOError):
    """The model is being loaded: ask again soon."""

    code = LOADING


class ModelCache:
    """Models by kind and digest, for one thread; another loads. copies: for files that lie elsewhere.

    pinned: names of models that stay once they are loaded.
    """

    def __init__(self, store: Storage, budget_bytes: int, copies: Path, pinned: Collection[str] = ()) -> None:
        self._store, self._budget, self._copies = store, budget_bytes, copies
        self._pinned_names, self._pinned = frozenset(pinned), set[str]()
        self._models: OrderedDict[tuple[Kind, str], LoadedModel] = OrderedDict()
        self._tokenizers: OrderedDict[str, LoadedTokenizer] = OrderedDict()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loads: dict[tuple[Kind, str], tuple[Future[LoadedModel], int, float]] = {}

    @property
    def held(self) -> list[tuple[Kind, str]]:
        """What is loaded, least recently used first."""
        return list(self._models)

    @property
    def bytes(self) -> int:
        """Of all models, with those that are being loaded."""
        coming = sum(size for _, size, _ in self._loads.values())
        return coming + sum(held.bytes for held in self._models.values())

    def close(self) -> None:
        """End the thread that loads, once it is done with what it loads."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def tokenizer(self, files: ModelFiles) -> LoadedTokenizer:
        """The tokenizer alone. Raises Refused, UnusableModel."""
        if files.sha256 not in self._tokenizers:
            self._tokenizers[files.sha256] = _load_tokenizer(self._folder(files))
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
        self._models.move_to_end(key)
        return self._models[key]

    def _loaded(self, key: tuple[Kind, str], files: ModelFiles, in_use: Collection[str]) -> LoadedModel:
        if key not in self._loads:
            folder = self._folder(files)
            _check_kind(folder, files.name, key[0])
            weights = sum(_bytes_in_memory(file) for file in folder.glob(WEIGHTS))
            prefixes = min(PREFIX_BYTES, weights // PREFIX_SHARE, max(0, self._budget - weights))
            size = weights + prefixes
            self._make_room(files.name, size, in_use)
            load = self._loader.submit(_load, key[0], folder, prefixes, size)
            self._loads[key] = load, size, time.monotonic()
        future, size, since = self._loads[key]
        if not in_use and size <= SOON_BYTES:
            with suppress(TimeoutError):
                future.exception(SOON_SECONDS)
        if not future.done():
            seconds = time.monotonic() - since
            detail = f"{files.name!r} is being loaded: {size / 1e6:,.0f} MB, begun {seconds:.0f} s ago"
            raise Loading(detail, param="model")
        del self._loads[key]
        return future.result()

    def _make_room(self, name: str, wanted: int, in_use: Collection[str]) -> None:
        if wanted > self._budget:
            raise Refused(
                f"{name!r} takes {wanted:,} bytes, and the sampler may hold {self._budget:,} "
                "(MPO_SAMPLER_MEMORY_BYTES)",
                code="model_too_large",
                param="model",
            )
        for key in list(self._models):
            if wanted + self.bytes <= self._budget:
                return
            if key[1] not in in_use and key[1] not in self._pinned:
                del self._models[key]
        if wanted + self.bytes > self._budget:
            raise NoRoom

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


def _check_kind(folder: Path, name: str, kind: Kind) -> None:
    """A reward model loads as a policy too, with a head of noise: so its configuration is asked first."""
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or []
    scores = any("SequenceClassification" in architecture for architecture in architectures)
    if scores == (kind == "reward_model"):
        return
    can = "scores responses; it writes none" if scores else "is no reward model"
    raise Refused(f"{name!r} {can}", code="wrong_model_kind", param="model")


def _bytes_in_memory(file: Path) -> int:
    """Of a file's tensors once they are loaded, in fp32 whatever the file holds them in: by its header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(min(size, int.from_bytes(opened.read(8), "little"))))
        return sum(4 * prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):
        return size  # what is no such file, loading says better


def _load_tokenizer(folder: Path) -> LoadedTokenizer:
    tokenizer = load_tokenizer(folder)
    settings = text_settings(folder / "config.json")
    # The embedding may be larger than the tokenizer; what lies beyond the embedding would crash the model.
    vocabulary = int(settings.get("vocab_size") or len(tokenizer))
    context_tokens = named_context(settings) or DEFAULT_CONTEXT_TOKENS
    return LoadedTokenizer(folder, tokenizer, Speller(tokenizer), vocabulary, context_tokens)


def _load(kind: Kind, folder: Path, prefix_bytes: int, size: int) -> LoadedModel:
    load = load_policy if kind == "policy" else load_reward_model
    model = load(folder).eval().requires_grad_(False).to(training_device())
    return LoadedModel(model, PrefixCache(prefix_bytes), size)
