"""Models and tokenizers as they are read from their folders."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mpo.adapter_mixture import AdapterMixture, LowRank, low_rank_layers
from mpo.adapters import read_adapter, weights_digest
from mpo.continuous_batch import Voice
from mpo.errors import UnusableModel
from mpo.lengths import named_context, text_settings
from mpo.policies import load_policy, load_reward_model, training_device
from mpo.prefix_cache import PrefixCache
from mpo.safetensors_headers import tensor_shapes
from mpo.tokenization import Terminators, load_tokenizer, terminators
from workers.sampling.refusals import Refused
from workers.sampling.spelling import Speller

Kind = Literal["policy", "reward_model"]
DEFAULT_CONTEXT_TOKENS = 1024


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
    """A model in memory: a network of its own, or an adapter of one that others run on too.

    digest: the model's. network: its network's, by which responses are drawn together. bytes: of what is its
    alone, parameters and what prompts that it has read may take.
    """

    digest: str
    network: str
    mixture: AdapterMixture
    voice: Voice
    bytes: int

    @property
    def model(self) -> PreTrainedModel:
        """The network; it runs as this model within `alone`."""
        return self.mixture.model

    def alone(self) -> AbstractContextManager[None]:
        """Within, all rows that the network reads are this model's."""
        return self.mixture.rows([self.voice.adapter])


def load_whole(kind: Kind, folder: Path, digest: str, prefix_bytes: int, size: int) -> LoadedModel:
    """A model with a network of its own. Raises UnusableModel."""
    load = load_policy if kind == "policy" else load_reward_model
    model = load(folder).eval().requires_grad_(False).to(training_device())
    return LoadedModel(digest, digest, AdapterMixture(model), Voice(None, PrefixCache(prefix_bytes)), size)


def load_low_rank(folder: Path, base_folder: Path) -> Mapping[str, LowRank]:
    """A model's adapter. Raises UnusableModel where it is of another base than the one in that folder."""
    adapter = read_adapter(folder)
    if adapter is None or adapter.base_sha256 != weights_digest(base_folder):
        raise UnusableModel("this is no adapter of that base", model=folder.name)
    return low_rank_layers(adapter)


def read_tokenizer(folder: Path) -> LoadedTokenizer:
    """The tokenizer of a model's folder. Raises UnusableModel."""
    tokenizer = load_tokenizer(folder)
    settings = text_settings(folder / "config.json")
    # The embedding may be larger than the tokenizer; what lies beyond the embedding would crash the model.
    vocabulary = int(settings.get("vocab_size") or len(tokenizer))
    context_tokens = named_context(settings) or DEFAULT_CONTEXT_TOKENS
    return LoadedTokenizer(folder, tokenizer, Speller(tokenizer), vocabulary, context_tokens)


def check_kind(folder: Path, name: str, kind: Kind) -> None:
    """Raises Refused. A reward model loads as a policy too, with a head of noise: so its config is asked."""
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or []
    scores = any("SequenceClassification" in architecture for architecture in architectures)
    if scores == (kind == "reward_model"):
        return
    can = "scores responses; it writes none" if scores else "is no reward model"
    raise Refused(f"{name!r} {can}", code="wrong_model_kind", param="model")


def bytes_of_weights(folder: Path) -> int:
    """Of a folder's tensors once they are loaded, in fp32 whatever its files hold them in."""
    return sum(_bytes_in_memory(file) for file in folder.glob("*.safetensors"))


def _bytes_in_memory(file: Path) -> int:
    try:
        return sum(4 * prod(shape) for shape in tensor_shapes(file).values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return file.stat().st_size  # what is no such file, loading says better
