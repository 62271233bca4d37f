"""Loads and saves policies, references and reward models: folders that from_pretrained reads."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from mpo.errors import UnusableModel
from mpo.headless_architectures import no_head
from mpo.tokenization import load_tokenizer, terminators

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_CONFIG = "generation_config.json"


def training_device() -> torch.device:
    """Where models run: the first GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_training_device(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, moved to `training_device()`."""
    device: Any = training_device()
    return model.to(device)


def load_policy(folder: Path) -> PreTrainedModel:
    """Causal language model from a folder of safetensors: fp32, on the CPU, dropout off.

    Raises UnusableModel where the folder holds no such model. Code that the folder may contain is never run.
    """
    config = _config(folder)
    if is_reward_model(config):  # with tied embeddings, no weight would be missed
        raise UnusableModel("this is a reward model, and a policy is needed here", model=folder.name)
    return _load(AutoModelForCausalLM, folder, config)


def load_reward_model(folder: Path) -> PreTrainedModel:
    """Reward model, as `new_reward_model` made and `save_model` saved it: fp32, on the CPU, dropout off.

    Raises UnusableModel where the folder holds something else, a policy for instance.
    """
    config = _config(folder)
    if config.num_labels != 1 or not is_reward_model(config):
        raise UnusableModel("this is no reward model: it has no head of one score", model=folder.name)
    return _load(AutoModelForSequenceClassification, folder, config)


def is_reward_model(config: PreTrainedConfig) -> bool:
    """Whether the configuration is of a model with a score head."""
    return any("SequenceClassification" in name for name in config.architectures or [])


def new_reward_model(folder: Path, seed: int) -> PreTrainedModel:
    """A policy's backbone under a new scalar head, drawn from N(0, initializer_range²) by the seed alone.

    Raises UnusableModel, also where transformers has no such head for the architecture.
    """
    policy = load_policy(folder)
    config = copy.deepcopy(policy.config)  # not the folder's: that may be of more than the text model
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise no_head(config.model_type, model=folder.name)
    config.num_labels = 1
    config.get_text_config().pad_token_id = terminators(folder).pad_id
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from it, only to be overwritten
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    head = score_head(model)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = head.weight
        scale = getattr(config.get_text_config(), "initializer_range", 0.02)
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return _without_dropout(model)


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The head that turns a hidden state into a reward. Raises UnusableModel where the model has none."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise UnusableModel("this model has no head of one score", model=type(model).__name__)
    return head


def save_model(model: PreTrainedModel, source_folder: Path, target: Path) -> None:
    """Writes a folder that from_pretrained loads: safetensors, config.json, tokenizer, generation settings.

    The latter two are source_folder's, byte for byte: whatever a trainer did to them in memory is not kept.
    Only a reward model's tokenizer may be given another padding token, the one that its head looks for.
    """
    with _quiet():
        model.save_pretrained(target)
    for name in TOKENIZER_FILES:
        if (source_folder / name).is_file():
            shutil.copyfile(source_folder / name, target / name)
    (target / GENERATION_CONFIG).unlink(missing_ok=True)
    if (source_folder / GENERATION_CONFIG).is_file() and model.can_generate():
        shutil.copyfile(source_folder / GENERATION_CONFIG, target / GENERATION_CONFIG)
    if is_reward_model(model.config):
        _pad_with(model.config.get_text_config().pad_token_id, target)


def _pad_with(pad_id: int, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    # Named as padding, an ordinary token would no longer be read as text.
    if pad_id != tokenizer.pad_token_id and pad_id in tokenizer.added_tokens_decoder:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
        tokenizer.save_pretrained(folder)


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise UnusableModel("there is no config.json", model=folder.name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnusableModel(f"config.json cannot be read: {error}", model=folder.name) from error
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in list(vars(part).items()):
            # Layers read their rates from here, under many names: attention_dropout, resid_pdrop, …
            if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
                setattr(part, name, 0.0)
    return config


def _load(auto_class: Any, folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with _quiet():
            model, info = auto_class.from_pretrained(
                folder,
                output_loading_info=True,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnusableModel(f"the model cannot be loaded: {error}", model=folder.name) from error
    if info["missing_keys"]:  # transformers would go on with random ones
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise UnusableModel(f"the files lack weights of the model: {names}", model=folder.name)
    return _without_dropout(model)


def _without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: a stage's standard error is its log."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
