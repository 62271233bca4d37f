"""Loaded models within a memory budget: the least recently used one goes first."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.sampling import ModelFiles
from core.storage import Storage
from mpo.lengths import named_context, text_settings
from mpo.policies import load_policy, load_reward_model, training_device
from mpo.tokenization import Terminators, load_tokenizer, terminators
from workers.sampling.refusals import Refused
from workers.sampling.spelling import Speller

Kind = Literal["policy", "reward_model"]
DEFAULT_CONTEXT_TOKENS = 1024
MAX_TOKENIZERS = 64
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class LoadedTokenizer:
    """A model folder's tokenizer, what ends a response by it, and how it spells."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    speller: Speller
    vocabulary: int
    context_tokens: int

    @property
    def terminators(self) -> Terminators:
        """What ends a response; raises UnusableModel where nothing does."""
        return terminators(self.folder, self.tokenizer)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory; `bytes` are its parameters'."""

    model: PreTrainedModel
    bytes: int


class ModelCache:
    """Models by kind and digest, for one thread. copies: a folder for files that lie elsewhere."""

    def __init__(self, store: Storage, budget_bytes: int, copies: Path) -> None:
        self._store, self._budget, self._copies = store, budget_bytes, copies
        self._models: OrderedDict[tuple[Kind, str], LoadedModel] = OrderedDict()
        self._tokenizers: OrderedDict[str, LoadedTokenizer] = OrderedDict()

    @property
    def held(self) -> list[tuple[Kind, str]]:
        """What is loaded, least recently used first."""
        return list(self._models)

    def tokenizer(self, files: ModelFiles) -> LoadedTokenizer:
        """The tokenizer alone. Raises Refused, UnusableModel."""
        if files.sha256 not in self._tokenizers:
            self._tokenizers[files.sha256] = _load_tokenizer(self._folder(files))
            while len(self._tokenizers) > MAX_TOKENIZERS:
                self._tokenizers.popitem(last=False)
        self._tokenizers.move_to_end(files.sha256)
        return self._tokenizers[files.sha256]

    def model(self, files: ModelFiles, kind: Kind) -> PreTrainedModel:
        """The model, loaded where it is not yet; others make room. Raises Refused, UnusableModel."""
        key = (kind, files.sha256)
        if key not in self._models:
            folder = self._folder(files)
            _check_kind(folder, files.name, kind)
            self._make_room(sum(file.stat().st_size for file in folder.glob(WEIGHTS)))
            load = load_policy if kind == "policy" else load_reward_model
            model = load(folder).eval().to(training_device())
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            self._make_room(size)
            self._models[key] = LoadedModel(model, size)
        self._models.move_to_end(key)
        return self._models[key].model

    def _make_room(self, wanted: int) -> None:
        while self._models and wanted + sum(held.bytes for held in self._models.values()) > self._budget:
            self._models.popitem(last=False)

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


def _load_tokenizer(folder: Path) -> LoadedTokenizer:
    tokenizer = load_tokenizer(folder)
    settings = text_settings(folder / "config.json")
    # The embedding may be larger than the tokenizer; what lies beyond the embedding would crash the model.
    vocabulary = int(settings.get("vocab_size") or len(tokenizer))
    context_tokens = named_context(settings) or DEFAULT_CONTEXT_TOKENS
    return LoadedTokenizer(folder, tokenizer, Speller(tokenizer), vocabulary, context_tokens)
