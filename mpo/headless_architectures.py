"""Architectures of causal language models that no reward model can be made of: transformers has no class of
them with a scalar head. Torch-free."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mpo.errors import UnusableModel
from mpo.stage_graph import PlannedStage, Source, lineages

_NAMES = """
afmoe apertus apertus1p5_text aria_text bailing_hybrid bamba beam bert-generation bitnet blenderbot
blenderbot-small blt codegen cohere cohere2 cohere2_moe cpmant cwm dbrx deepseek_v32 deepseek_v4 dory dots1
dots3_note dots3_note_text emu3 ernie4_5 ernie4_5_moe exaone exaone_moe falcon_h1 falcon_mamba flex_olmo
flint fuyu gemma3n gemma3n_text gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant
gemma4_unified_text git glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt_neox_japanese granite granite_swa
granitemoe granitemoe_swa granitemoehybrid granitemoeshared hrm_text hy_v3 hy_v4 hyperclovax
inkling2_loop_text inkling2_text inkling_text internlm3 iquestcoder jais2 kimi_linear kolibri1 laguna
lara_mini lfm2 lfm2_moe lfm3 llama4 llama4_text longcat_flash mamba mamba2 marian mellum mimo_v2_flash
minimax_m2 minimax_m3_vl_text mllama moshi moss_transcribe_diarize musicgen musicgen_melody nanochat
nemotron_h olmo_hybrid olmoe pegasus phi4_multimodal prophetnet qwen3_5_moe qwen3_5_moe_text qwen4_exp
qwen4_exp_text recurrent_gemma rwkv sarvam_mla sarvam_moe solar_open trocr vaultgemma whisper xglm xlstm
youtu zaya
"""

HEADLESS = frozenset(_NAMES.split())
"""As config.json names them, in `model_type`; of transformers of the version below, with whose own list a
test compares them. A stage asks transformers itself, but only once its turn has come."""

LISTED = "5.24."
"""Where another version is installed, nothing is refused by the list: a newer one may have the class."""


def no_head(architecture: str, **facts: object) -> UnusableModel:
    """The error that says so of an architecture."""
    return UnusableModel(
        f"transformers has no class with a scalar head for the architecture {architecture!r}, and a reward "
        "model needs one: choose a base model of another architecture, or leave out what trains a reward "
        "model (where it is only the judge: evaluate: null).",
        architecture=architecture,
        **facts,
    )


def refuse_headless(stages: Sequence[PlannedStage], folders: Mapping[Source, Path]) -> None:
    """Raises UnusableModel, whose fact `stage` names the first reward model that cannot be made.

    folders: of models that no stage makes; one that does not tell its architecture passes.
    """
    if not _is_listed_version():
        return
    found = lineages(stages)
    for stage in stages:
        start = found[stage.name].start if stage.kind == "reward_model" else None
        if start is None or start not in folders:
            continue
        architecture = _architecture(folders[start])
        if architecture in HEADLESS:
            raise no_head(architecture, stage=stage.name)


def _is_listed_version() -> bool:
    """Whether the list is the installed transformers' own; so too where none is installed, as with an API."""
    try:
        return version("transformers").startswith(LISTED)
    except PackageNotFoundError:
        return True


def _architecture(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
