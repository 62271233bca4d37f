"""`python -m mpo.imported_models`: makes sure that a model from elsewhere can be trained here.

A process of its own, for those who want the answer and may not load torch. What is wrong is one line on
standard error, and exit status 1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.utils import logging as transformers_logging

from mpo.errors import MPOError, UnusableModel
from mpo.gguf_models import convert_gguf
from mpo.policies import is_reward_model, load_policy
from mpo.tokenization import terminators

INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Whether stages can start from the folder: architecture, weights, tokenizer. Raises UnusableModel.

    Weights are looked for, not loaded: they may need more memory than this machine has.
    """
    _check_architecture(folder)
    _check_weights(folder)
    terminators(folder)


def _check_architecture(folder: Path) -> None:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UnusableModel("there is no config.json that can be read") from error
    if kind not in CONFIG_MAPPING:
        own = "; it comes with code of its own, which is never run" if "auto_map" in values else ""
        raise UnusableModel(f"transformers does not know the architecture {kind!r}{own}")
    if values.get("quantization_config"):
        raise UnusableModel("its weights are quantized, and training needs plain ones")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise UnusableModel(f"config.json cannot be read: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not is_reward_model(config):
        raise UnusableModel(f"the architecture {kind!r} is no causal language model")


def _check_weights(folder: Path) -> None:
    index = folder / INDEX
    try:
        if index.is_file():
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        else:
            named = {path.name for path in folder.glob("*.safetensors")}
        if not named:
            raise UnusableModel("it has no safetensors, and pickled weights are never loaded")
        for name in sorted(named):
            with safe_open(folder / name, framework="np") as weights:
                weights.keys()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UnusableModel(f"its safetensors cannot be read: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m mpo.imported_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="can stages start from this folder?")
    check.add_argument("folder", type=Path)
    convert = commands.add_parser("convert", help="make a model folder of a GGUF file")
    convert.add_argument("file", type=Path)
    convert.add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        if given.command == "convert":
            convert_gguf(given.file, given.folder)
            load_policy(given.folder)
        check_folder(given.folder)
    except MPOError as error:
        print(" ".join(error.detail.split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
