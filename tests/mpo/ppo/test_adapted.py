"""PPO by adapters: one frozen base under policy, reference, SFT, reward model and critic."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from mpo.adapted_models import AdaptedModel, frozen_reward_model
from mpo.adapters import ADAPTER, AdaptedBase, weights_digest
from mpo.checkpoints import load_state
from mpo.config import DPOStage, PPOStage, RewardModelStage, SFTStage
from mpo.dpo.train import train_dpo
from mpo.errors import StageInterrupted, UnusableModel
from mpo.estimates_networks import adapted_networks
from mpo.job_spec import JobSpec
from mpo.plan import expand
from mpo.policies import load_policy, load_reward_model
from mpo.ppo.adapted import load_adapted_networks
from mpo.ppo.train import train_ppo
from mpo.reporter import StageTask
from mpo.reward_model.score import score_responses
from mpo.reward_model.train import train_reward_model
from mpo.sft.train import train_sft
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy, write_reward_model

LORA = LoRAConfig(rank=4, alpha=8)
LENGTHS = {"max_prompt_tokens": 16, "max_response_tokens": 8}
FAST: dict[str, Any] = {"learning_rate": 1e-2, "batch_pairs": 8, "lora": LORA, **LENGTHS}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and SFT, DPO and reward model as adapters over it."""
    folder = tmp_path_factory.mktemp("adapted")
    base, data = write_policy(folder / "base"), write_pairs(folder / "pairs.parquet")
    train_sft(
        task_of(SFTStage(**FAST), folder / "sft", {"policy": base, "base": base, "data": data}),
        RecordingReporter(),
    )
    sft = folder / "sft" / "model"
    chosen = {"policy": sft, "reference": sft, "base": base, "data": data}
    train_dpo(task_of(DPOStage(**FAST, epochs=8), folder / "dpo", chosen), RecordingReporter())
    scored = {"backbone": base, "base": base, "data": data}
    train_reward_model(task_of(RewardModelStage(**FAST), folder / "rm", scored), RecordingReporter())
    return folder


def ppo_task(house: Path, output: Path, resume: Path | None = None, **changed: Any) -> StageTask:
    settings: dict[str, Any] = {
        "rollout_prompts": 8,
        "mini_batches": 2,
        "epochs": 2,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "lora": LORA,
        **LENGTHS,
        **changed.pop("config", {}),
    }
    dpo = house / "dpo" / "model"
    inputs = {
        "policy": dpo,
        "reference": dpo,
        "sft": house / "sft" / "model",
        "reward_model": house / "rm" / "model",
        "base": house / "base",
        "prompts": house / "pairs.parquet",
        **changed,
    }
    return task_of(PPOStage.model_validate(settings), output, inputs, resume=resume)


@pytest.mark.parametrize("critic", ["separate", "shared_trunk"])
def test_ppo_begins_at_the_dpo_model_and_away_from_sft(house: Path, tmp_path: Path, critic: str) -> None:
    reporter = RecordingReporter()
    config = {"critic": critic, "rollout_prompts": 24, "episodes": 48}
    train_ppo(ppo_task(house, tmp_path, config=config), reporter)
    metrics = [step[2] for step in reporter.steps]
    assert metrics[0]["kl"] == 0.0  # exactly: a copy of the reference's adapter, over the same base
    assert metrics[0]["kl_to_sft"] > 0.5
    assert metrics[1]["kl"] != 0.0


def test_ratios_are_exactly_one_while_nothing_is_learnt(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    train_ppo(ppo_task(house, tmp_path, config={"learning_rate": 0.0}), reporter)
    assert {step[2]["ratio_max"] for step in reporter.steps} == {1.0}
    assert {step[2]["kl"] for step in reporter.steps} == {0.0}
    before = load_file(house / "dpo" / "model" / ADAPTER / "adapter_model.safetensors")
    after = load_file(tmp_path / "model" / ADAPTER / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_what_is_saved_loads_with_transformers_and_with_peft(house: Path, tmp_path: Path) -> None:
    train_ppo(ppo_task(house, tmp_path), RecordingReporter())
    base = AutoModelForCausalLM.from_pretrained(house / "base")
    ids = torch.tensor([[1, 5, 9, 20, 33]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "model" / ADAPTER)(ids).logits
    assert_close(adapted, merged, atol=1e-5, rtol=1e-5)
    assert (merged - load_policy(house / "dpo" / "model")(ids).logits).abs().max() > 1e-3
    origin = json.loads((tmp_path / "model" / ADAPTER / "origin.json").read_text())
    assert origin["base_sha256"] == weights_digest(house / "base")


@pytest.mark.parametrize(
    "config",
    [{"critic": "separate"}, {"critic": "shared_trunk"}, {"ema_reference": 0.5}],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    house: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    train_ppo(ppo_task(house, tmp_path / "whole", config=config), RecordingReporter())
    for boundary in (1, 2):
        kept, rest = tmp_path / f"kept {boundary}", tmp_path / f"rest {boundary}"
        stopped = RecordingReporter(kept=kept, stop_after=boundary)
        with pytest.raises(StageInterrupted):
            train_ppo(ppo_task(house, tmp_path / f"first {boundary}", config=config), stopped)
        train_ppo(ppo_task(house, rest, resume=kept, config=config), RecordingReporter())
        for name in ("model.safetensors", f"{ADAPTER}/adapter_model.safetensors"):
            whole = (tmp_path / "whole" / "model" / name).read_bytes()
            assert (rest / "model" / name).read_bytes() == whole, (boundary, name)


def test_a_checkpoint_holds_adapters_and_heads_alone(house: Path, tmp_path: Path) -> None:
    with pytest.raises(StageInterrupted):
        train_ppo(ppo_task(house, tmp_path / "out"), RecordingReporter(kept=tmp_path / "kept", stop_after=1))
    trained = load_state(tmp_path / "kept" / "state.safetensors")["trained"]
    names = {name for network in trained.values() for name in network["weights"]}
    assert trained.keys() == {"policy", "critic"}
    assert all("lora" in name or name.startswith("score.") for name in names)


def test_the_base_s_adapter_scores_like_the_merged_reward_model(house: Path) -> None:
    folder = house / "rm" / "model"
    base = AdaptedBase(load_policy(house / "base").eval(), weights_digest(house / "base"))
    view = frozen_reward_model(base, folder)
    assert isinstance(view, AdaptedModel)
    prompts, responses = [[1, 5, 9], [1, 7]], [[20, 33, 2], [40, 2]]
    rewards = score_responses(view, prompts, responses)
    assert_close(rewards, score_responses(load_reward_model(folder), prompts, responses))
    assert rewards[0] != rewards[1]


def test_a_reference_that_is_the_base_is_the_base_with_adapters_off(house: Path, tmp_path: Path) -> None:
    base = house / "base"
    task = ppo_task(house, tmp_path, policy=base, reference=base)
    networks = load_adapted_networks(task, task.config, LORA)  # type: ignore[arg-type]
    assert networks.reference.name is None  # type: ignore[attr-defined]
    reporter = RecordingReporter()
    train_ppo(task, reporter)
    assert reporter.steps[0][2]["kl"] == 0.0
    assert reporter.steps[1][2]["kl"] != 0.0


def test_models_of_another_base_take_part_whole(house: Path, tmp_path: Path) -> None:
    other = write_policy(tmp_path / "other", seed=4)
    scorer = write_reward_model(tmp_path / "scorer", other)
    reporter = RecordingReporter()
    train_ppo(ppo_task(house, tmp_path / "out", reference=other, reward_model=scorer), reporter)
    assert reporter.steps[0][2]["kl"] > 0.01
    assert reporter.steps[0][2]["reward"] != 0.0


@pytest.mark.parametrize("full", [(), ("reward_model",), ("sft",), ("dpo", "sft", "reward_model")], ids=str)
def test_as_many_models_are_loaded_as_are_estimated(
    house: Path, tmp_path: Path, full: tuple[str, ...]
) -> None:
    """full: stages before that trained every weight."""
    adapted: dict[str, Any] = {"lora": LORA.model_dump()}
    method = {name: {} if name in full else adapted for name in ("sft", "reward_model", "dpo", "ppo")}
    spec = JobSpec.model_validate({"model": "m", "dataset": "ds_a", "method": {"type": "mpo", **method}})
    plan = expand(spec, model="m", dataset="ds_a")
    stage = next(stage for stage in plan if stage.name == "ppo")
    assert isinstance(stage.config, PPOStage)
    task = ppo_task(house, tmp_path / "out", **full_models(house, tmp_path, full))
    loaded = load_adapted_networks(task, stage.config, LORA).whole()
    assert len(loaded) == adapted_networks(stage, stage.config, LORA, plan).models


def full_models(house: Path, folder: Path, full: tuple[str, ...]) -> dict[str, Path]:
    """Models for roles of PPO of which these stages trained every weight, the others adapters."""
    found = {}
    if "sft" in full:
        sft = found["sft"] = write_policy(folder / "sft", seed=1)
        config = DPOStage(**{**FAST, "lora": None if "dpo" in full else LORA})
        inputs = {"policy": sft, "reference": sft, "base": house / "base", "data": house / "pairs.parquet"}
        train_dpo(task_of(config, folder / "dpo", inputs), RecordingReporter())
        found["policy"] = found["reference"] = folder / "dpo" / "model"
    if "reward_model" in full:
        found["reward_model"] = write_reward_model(folder / "rm", house / "base")
    return found


def test_adapters_of_two_shapes_are_refused_before_training(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    with pytest.raises(UnusableModel, match="has rank 4, and lora asks for 8"):
        train_ppo(ppo_task(house, tmp_path, config={"lora": LoRAConfig(rank=8, alpha=8)}), reporter)
    assert reporter.steps == []


def test_a_moving_reference_that_is_the_base_starts_as_the_base(house: Path, tmp_path: Path) -> None:
    fixed, moving = RecordingReporter(), RecordingReporter()
    train_ppo(ppo_task(house, tmp_path / "fixed", reference=house / "base"), fixed)
    config = {"ema_reference": 0.9}
    train_ppo(ppo_task(house, tmp_path / "moving", reference=house / "base", config=config), moving)
    assert moving.steps[0][2]["kl"] == fixed.steps[0][2]["kl"] != 0.0
    assert moving.steps[1][2]["kl"] != fixed.steps[1][2]["kl"]
