"""Gradient checkpointing: the same numbers, and fewer of them kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.mpt import MptConfig

from mpo.adapters import AdaptedBase
from mpo.config import DPOStage, PPOStage, RewardModelStage, SFTStage
from mpo.dpo.objective import logprobs_of_pairs
from mpo.packed_models import pack_where_exact, reads_packed_rows
from mpo.recomputation import NO_LAYERS, recompute_layers
from mpo.reward_model.score import pair_scores
from mpo.stages import run_stage
from mpo.training_config import LoRAConfig, TrainingConfig
from tests.mpo.test_packed_models import EXACT, FALLING_BACK, PAD, PAIRS, gradients, model_of
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy, write_reward_model

LORA = LoRAConfig(rank=4, alpha=8)
LENGTHS: dict[str, Any] = {"max_prompt_tokens": 16, "max_response_tokens": 8, "learning_rate": 1e-2}


def deep(config: Any) -> Any:
    """The configuration with layers enough for some to be recomputed."""
    named = "n_layer" if hasattr(config, "n_layer") else "num_hidden_layers"
    return type(config).from_dict({**config.to_dict(), named: 4, "layer_types": None})


def model(name: str, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    found = model_of(deep({**EXACT, **FALLING_BACK}[name]), auto)
    pack_where_exact(found, lambda _reason: None)
    return found


def seen(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor], int]:
    """Log-probabilities of both responses, the gradients of a loss, and how many bytes were kept for it."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)  # or another tensor would get the place of one that is gone
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = logprobs_of_pairs(model, PAIRS, PAD)
    loss = (found.chosen - 2 * found.rejected).sum()
    return torch.stack(found).detach(), gradients(model, loss), sum(kept.values())


@pytest.mark.parametrize("name", [*EXACT, "bloom, ALiBi"])
@pytest.mark.parametrize("adapted", [False, True], ids=["every weight", "LoRA"])
def test_log_probabilities_and_gradients_are_the_same_to_the_bit(name: str, adapted: bool) -> None:
    torch.manual_seed(0)
    plain = model(name)
    if adapted:
        base = AdaptedBase(plain, "digest")
        base.add("adapter", LORA, None, seed=0)
        for parameter in base.parameters("adapter").values():
            torch.nn.init.normal_(parameter, std=0.1)  # an adapter's second matrix starts at 0
    assert reads_packed_rows(plain) == (name in EXACT)
    expected, wanted, kept = seen(plain)
    recompute_layers(plain, pytest.fail)
    found, given, fewer = seen(plain)
    assert torch.equal(found, expected)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[weight], gradient) for weight, gradient in wanted.items())
    assert any(gradient.abs().max() > 0 for gradient in wanted.values())
    assert fewer < kept / 2


def test_rewards_are_the_same_and_asking_twice_changes_nothing() -> None:
    config = type(EXACT["llama"]).from_dict({**EXACT["llama"].to_dict(), "num_labels": 1})
    plain = model_of(deep(config), AutoModelForSequenceClassification)
    pack_where_exact(plain, pytest.fail)
    scores = pair_scores(plain, PAIRS, PAD)
    expected = gradients(plain, scores.square().sum())
    for _ in range(2):
        recompute_layers(plain, pytest.fail)
    again = pair_scores(plain, PAIRS, PAD)
    assert torch.equal(again, scores)
    found = gradients(plain, again.square().sum())
    assert all(torch.equal(found[weight], gradient) for weight, gradient in expected.items())


def test_a_model_without_a_list_of_layers_goes_on_and_says_so() -> None:
    said: list[str] = []
    recompute_layers(model_of(MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4)), said.append)
    assert said == [NO_LAYERS]


STAGES: dict[str, TrainingConfig] = {
    "sft": SFTStage(**LENGTHS),
    "reward_model": RewardModelStage(**LENGTHS),
    "reward_model, trl": RewardModelStage(**LENGTHS, engine="trl"),
    "dpo": DPOStage(**LENGTHS),
    "dpo, LoRA": DPOStage(**LENGTHS, lora=LORA),
    "dpo, trl": DPOStage(**LENGTHS, engine="trl"),
    "dpo, LoRA, trl": DPOStage(**LENGTHS, engine="trl", lora=LORA),
    "ppo": PPOStage(**LENGTHS, rollout_prompts=8, max_new_tokens=6),
    "dpo, bf16": DPOStage(**LENGTHS, precision="bf16"),
    "ppo, bf16": PPOStage(**LENGTHS, rollout_prompts=8, max_new_tokens=6, precision="bf16"),
    "ppo, LoRA": PPOStage(**LENGTHS, rollout_prompts=8, max_new_tokens=6, lora=LORA),
    "ppo, shared trunk": PPOStage(**LENGTHS, rollout_prompts=8, max_new_tokens=6, critic="shared_trunk"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a reward model and pairs."""
    folder = tmp_path_factory.mktemp("recomputed")
    write_reward_model(folder / "scores", write_policy(folder / "base"))
    write_pairs(folder / "pairs.parquet")
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_comes_to_the_same_model(name: str, house: Path, tmp_path: Path) -> None:
    files = []
    for checkpointing in (False, True):
        config: Any = STAGES[name].model_copy(update={"gradient_checkpointing": checkpointing})
        base, out = house / "base", tmp_path / str(checkpointing)
        roles = {
            "sft": {"policy": base},
            "reward_model": {"backbone": base},
            "dpo": {"policy": base, "reference": base},
            "ppo": {"policy": base, "reference": base, "reward_model": house / "scores"},
        }[config.kind]
        data = {"prompts" if config.kind == "ppo" else "data": house / "pairs.parquet"}
        reporter = RecordingReporter()
        run_stage(task_of(config, out, {**roles, **data}), reporter)
        assert reporter.warnings == []
        files.append((out / "model" / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != (house / "base" / "model.safetensors").read_bytes()
