"""Low-rank adapters: one frozen base carries named ones, and a folder holds one beside the merged weights.

Hu et al. 2021 (arXiv 2106.09685). A trained model's folder is whole and plain, for whoever loads it; its
subfolder `adapter` holds what was trained, over the base whose weights `origin.json` names by digest. A stage
that trains adapters goes on from there: nothing is merged while training.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from mpo.errors import UnusableModel
from mpo.policies import load_policy, save_model
from mpo.reporter import StageTask
from mpo.training_config import LoRAConfig, TrainingConfig

ADAPTER = "adapter"
"""Subfolder of a model's folder."""

ORIGIN, WEIGHTS, CONFIG = "origin.json", "adapter_model.safetensors", "adapter_config.json"
TRAINED = "default"
"""Name of the adapter that a stage trains; peft writes this one into the root of a folder."""

HEAD_WEIGHT = "base_model.model.score.weight"
"""Where peft keeps the head of a reward model."""

NO_TASK = None
"""What peft is told of a reward model in memory: told what it is, it would put a wrapper about the head."""


def weights_digest(folder: Path) -> str:
    """SHA-256, in hex, of the names and contents of a folder's safetensors."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Adapter:
    """An adapter as a folder holds it: its settings, its weights by peft's names, its base's digest."""

    config: LoraConfig
    weights: Mapping[str, torch.Tensor]
    base_sha256: str

    @property
    def low_rank(self) -> dict[str, torch.Tensor]:
        """The weights without those of a reward model's head."""
        return {name: weight for name, weight in self.weights.items() if name != HEAD_WEIGHT}


def read_adapter(model: Path) -> Adapter | None:
    """The adapter of a model's folder, on the CPU; None where the model was trained whole."""
    folder = model / ADAPTER
    if not (folder / ORIGIN).is_file():
        return None
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = None  # its base is known by digest; peft warns of another name
    if config.modules_to_save:
        config.modules_to_save, config.task_type = None, NO_TASK  # the head is not peft's to hold
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return Adapter(config, load_file(folder / WEIGHTS), origin["base_sha256"])


class AdaptedBase:
    """A base whose weights are frozen, under named adapters of which one is active, or none.

    model: the base itself, a plain transformers model: what runs is the base with the active adapter.
    """

    def __init__(self, model: PreTrainedModel, digest: str) -> None:
        self.model, self.digest = model, digest
        self.linear = linear_layers(model)
        self.peft: Any = None
        self.active: str | None = None
        model.requires_grad_(False)

    def add(self, name: str, lora: LoRAConfig, start: Adapter | None, seed: int) -> None:
        """Adds an adapter: a copy of `start`, or else one that changes nothing yet, drawn by the seed.

        Raises UnusableModel where `start` has another shape than `lora` asks for, or fits another model.
        """
        config = self._config(lora)
        if start is not None:
            _refuse_other_shape(start.config, config)
        self._add(name, config, seed)
        if start is not None:
            self._load(name, start)

    def _config(self, lora: LoRAConfig) -> LoraConfig:
        """peft's settings: no dropout, no biases; every linear layer of the backbone, or those named."""
        if unknown := sorted(set(lora.target_modules or []) - self.linear):
            raise UnusableModel(
                f"lora.target_modules: the model has no linear layer {unknown[0]}; it has "
                f"{', '.join(sorted(self.linear))}.",
                unknown=unknown,
            )
        return LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a factor, and peft takes any number for one
            target_modules=sorted(lora.target_modules or self.linear),
            lora_dropout=0.0,
            bias="none",
            task_type=NO_TASK if hasattr(self.model, "score") else "CAUSAL_LM",
        )

    def add_frozen(self, name: str, start: Adapter) -> None:
        """Adds a copy of an adapter, of whatever shape, that is not trained."""
        self._add(name, start.config, seed=0)
        self._load(name, start)

    def add_copy(self, name: str, of: str) -> None:
        """Adds a copy of an adapter that the base carries already."""
        self._add(name, self.wrapped().peft_config[of], seed=0)
        set_peft_model_state_dict(self.wrapped(), self.state(of), adapter_name=name)

    def _add(self, name: str, config: LoraConfig, seed: int) -> None:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for something by its old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            # It sees by itself which layers keep their weights the other way round, and warns of that.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
            torch.manual_seed(seed)
            if self.peft is None:
                self.peft = get_peft_model(self.model, config, adapter_name=name)
            else:
                self.peft.add_adapter(name, config)
        self.active = None
        self.activate(name)

    def _load(self, name: str, start: Adapter) -> None:
        found: Any = set_peft_model_state_dict(self.wrapped(), dict(start.low_rank), adapter_name=name)
        if found.unexpected_keys or set(self.state(name)) - set(start.low_rank):
            raise UnusableModel("The adapter does not fit the base's layers.", adapter=name)

    def wrapped(self) -> Any:
        """peft's own view of the base; there is one once an adapter was added."""
        assert self.peft is not None, "no adapter was added"
        return self.peft

    def activate(self, name: str | None) -> None:
        """From here on the base runs with this adapter alone; None: as it is."""
        if name == self.active or self.peft is None:
            return
        if name is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            if self.active is None:
                self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(name)
        self.active = name

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The weights of an adapter, by their names in the model."""
        return {path: p for path, p in self.model.named_parameters() if f".{name}." in path}

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's weights by peft's names, the adapter's own name left out; copies on the CPU."""
        # Left to decide about embeddings, peft would ask the hub how large the base's vocabulary is.
        state = get_peft_model_state_dict(self.wrapped(), adapter_name=name, save_embedding_layers=False)
        return {path: weight.detach().cpu().clone() for path, weight in state.items()}

    def merge(self, name: str) -> PreTrainedModel:
        """The base with the adapter added to its weights, for good: the adapters are gone afterwards."""
        self.activate(name)
        merged: PreTrainedModel = self.wrapped().merge_and_unload(adapter_names=[name])
        self.peft, self.active = None, None
        return merged


def linear_layers(model: PreTrainedModel) -> set[str]:
    """Names of the linear layers of a model's backbone, as q_proj; the head is not among them."""
    return {
        path.rpartition(".")[2]
        for path, layer in model.base_model.named_modules()
        if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
    }


def _refuse_other_shape(found: LoraConfig, asked: LoraConfig) -> None:
    for name, theirs, ours in (
        ("rank", found.r, asked.r),
        ("alpha", found.lora_alpha, asked.lora_alpha),
        ("target_modules", sorted(found.target_modules or []), sorted(asked.target_modules or [])),
    ):
        if theirs != ours:
            raise UnusableModel(
                f"The adapter to start from has {name} {theirs}, and lora asks for {ours}: an adapter goes "
                "on from the stage before it, so give both stages the same lora.",
                found=theirs,
                asked=ours,
            )


@dataclass(frozen=True)
class Opened:
    """A model to train. base: what it is an adapter of, where it is one; else all its weights are trained."""

    model: PreTrainedModel
    base: AdaptedBase | None = None


def base_folder(task: StageTask, role: str) -> Path:
    """The frozen base under the adapters of a stage: the role `base`, where the model of `role` is an adapter
    over it or is it; else that model itself, merged as it lies there."""
    start = task.one(role).path
    if "base" in task.inputs:
        adapter, base = read_adapter(start), task.one("base").path
        if adapter is not None and adapter.base_sha256 == weights_digest(base):
            return base
    return start


def open_policy(task: StageTask, role: str) -> Opened:
    """The policy of a role, to be trained: whole, or where the stage's `lora` is set as an adapter.

    Raises UnusableModel.
    """
    return open_trained(task, role, load_policy)


def open_trained(task: StageTask, role: str, load: Callable[[Path], PreTrainedModel]) -> Opened:
    """As `open_policy`, of whatever `load` makes of a folder."""
    assert isinstance(task.config, TrainingConfig)
    lora, folder = task.config.lora, task.one(role).path
    if lora is None:
        return Opened(load(folder))
    at = base_folder(task, role)
    base = AdaptedBase(load(at), weights_digest(at))
    base.add(TRAINED, lora, read_adapter(folder) if at != folder else None, task.seed)
    return Opened(base.model, base)


def save_trained(opened: Opened, source: Path, target: Path) -> None:
    """Writes a trained model: whole, and where it is an adapter that besides, in `ADAPTER`.

    source: whose tokenizer and generation settings go with it.
    """
    if opened.base is None:
        save_model(opened.model, source, target)
    else:
        save_adapted(opened.base, TRAINED, source, target)


def save_adapted(
    base: AdaptedBase, name: str, source: Path, target: Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes an adapter and the model that it makes of the base; the base's other adapters are lost.

    extra: kept beside the base's digest. The adapter loads with peft over the base, a reward model's with its
    head; the folder itself with transformers.
    """
    config: Any = base.wrapped().peft_config[name]
    weights = base.state(name)
    model = base.merge(name)
    save_model(model, source, target)
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        weights[HEAD_WEIGHT] = head.weight.detach().cpu().clone()
        config.modules_to_save, config.task_type = ["score"], "SEQ_CLS"
    folder = target / ADAPTER
    folder.mkdir()
    _save_config(config, folder)
    save_file({path: weight.contiguous() for path, weight in weights.items()}, folder / WEIGHTS)
    origin = {"base_sha256": base.digest, **(extra or {})}
    (folder / ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")


def _save_config(config: PeftConfig, folder: Path) -> None:
    """peft's settings, without what differs from time to time: a set's order, and this machine's paths."""
    config.inference_mode = True
    config.save_pretrained(str(folder))
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = Path(settings["base_model_name_or_path"] or "").name
    settings["target_modules"] = sorted(settings["target_modules"])
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
