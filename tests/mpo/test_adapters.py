import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mpo.adapters import ADAPTER, TRAINED, AdaptedBase, base_folder, read_adapter, weights_digest
from mpo.checkpoints import load_state
from mpo.config import DPOStage, SFTStage
from mpo.errors import StageInterrupted, UnusableModel
from mpo.policies import load_policy
from mpo.sft.train import train_sft
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy

LORA = LoRAConfig(rank=4, alpha=8)
IDS = torch.tensor([[1, 5, 9, 20, 33]])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an SFT of it by adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    write_policy(folder / "base")
    write_pairs(folder / "pairs.parquet", 22)
    train_sft(sft_task(folder, folder / "sft"), RecordingReporter())
    return folder


def sft_task(house: Path, output: Path, resume: Path | None = None):  # noqa: ANN201
    config = SFTStage(learning_rate=1e-2, epochs=2, batch_pairs=8, lora=LORA)
    inputs = {"policy": house / "base", "base": house / "base", "data": house / "pairs.parquet"}
    return task_of(config, output, inputs, resume=resume)


def test_the_folder_loads_with_transformers_and_its_adapter_with_peft(house: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(house / "base")
    untrained = base(IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(house / "sft" / "model")(IDS).logits
    adapted = PeftModel.from_pretrained(base, house / "sft" / "model" / ADAPTER)(IDS).logits
    torch.testing.assert_close(adapted, merged, atol=1e-5, rtol=1e-5)
    assert (merged - untrained).abs().max() > 0.1


def test_only_the_linear_layers_of_the_backbone_are_adapted(house: Path) -> None:
    settings = json.loads((house / "sft" / "model" / ADAPTER / "adapter_config.json").read_text())
    assert settings["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0)
    before, after = load_policy(house / "base"), load_policy(house / "sft" / "model")
    assert torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_resumed_adapters_equal_uninterrupted_ones_bit_for_bit(house: Path, tmp_path: Path) -> None:
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=3)
    with pytest.raises(StageInterrupted):
        train_sft(sft_task(house, tmp_path / "first"), first)
    frozen = load_state(tmp_path / "kept" / "state.safetensors")["parameters"]
    assert all("lora" in name for name in frozen), "a checkpoint holds what is trained, not the base"
    train_sft(sft_task(house, tmp_path / "rest", resume=tmp_path / "kept"), RecordingReporter())
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        whole = (house / "sft" / "model" / name).read_bytes()
        assert (tmp_path / "rest" / "model" / name).read_bytes() == whole, name


def test_one_base_runs_with_each_of_its_adapters_and_with_none(house: Path) -> None:
    start = read_adapter(house / "sft" / "model")
    assert start is not None
    base = AdaptedBase(load_policy(house / "base"), weights_digest(house / "base"))
    assert start.base_sha256 == base.digest
    plain = load_policy(house / "base")(IDS).logits
    base.add("new", LORA, None, seed=0)
    base.add_frozen("sft", start)
    with torch.no_grad():
        base.activate("sft")
        with_sft = base.model(IDS).logits
        base.activate("new")
        assert torch.equal(base.model(IDS).logits, plain), "a new adapter changes nothing yet"
        base.activate(None)
        assert torch.equal(base.model(IDS).logits, plain)
        base.activate("sft")
        assert torch.equal(base.model(IDS).logits, with_sft)
    torch.testing.assert_close(with_sft, load_policy(house / "sft" / "model")(IDS).logits)
    names = set(base.parameters("sft"))
    assert names
    assert names.isdisjoint(base.parameters("new"))


def test_gradients_reach_the_active_adapter_alone(house: Path) -> None:
    base = AdaptedBase(load_policy(house / "base"), "")
    base.add("first", LORA, None, seed=0)
    base.add("second", LORA, None, seed=1)
    base.activate("first")
    base.model(IDS).logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in base.parameters("first").values())
    assert all(p.grad is None for p in base.parameters("second").values())
    assert all(p.grad is None for name, p in base.model.named_parameters() if "lora" not in name)


def test_an_adapter_goes_on_over_its_own_base_and_a_whole_model_becomes_one(
    house: Path, tmp_path: Path
) -> None:
    config, sft = DPOStage(lora=LORA), house / "sft" / "model"
    over_base = task_of(config, tmp_path, {"policy": sft, "base": house / "base"})
    assert base_folder(over_base, "policy") == house / "base"
    other = write_policy(tmp_path / "other", seed=5)
    assert base_folder(task_of(config, tmp_path, {"policy": sft, "base": other}), "policy") == sft
    assert base_folder(task_of(config, tmp_path, {"policy": sft}), "policy") == sft


def test_an_adapter_of_another_shape_is_refused(house: Path) -> None:
    base = AdaptedBase(load_policy(house / "base"), "")
    start = read_adapter(house / "sft" / "model")
    with pytest.raises(UnusableModel, match="has rank 4, and lora asks for 8"):
        base.add(TRAINED, LoRAConfig(rank=8, alpha=8), start, seed=0)


def test_a_layer_that_the_model_lacks_is_named(house: Path) -> None:
    base = AdaptedBase(load_policy(house / "base"), "")
    with pytest.raises(UnusableModel, match="no linear layer query; it has down_proj"):
        base.add(TRAINED, LoRAConfig(target_modules=["query", "q_proj"]), None, seed=0)
