"""Networks that an estimate counts: which of PPO's are adapters of one base, and which whole models."""

from dataclasses import replace
from typing import Any

import pytest

from mpo.config import PPOStage
from mpo.estimates_fit import nearest_fit
from mpo.estimates_memory import PROCESS_BYTES, stage_memory
from mpo.estimates_networks import adapted_networks
from mpo.estimates_shape import ModelShape
from mpo.estimates_work import Longest
from mpo.job_spec import JobSpec
from mpo.plan import PlannedStage, Source, expand
from mpo.training_config import LoRAConfig

SHAPE = ModelShape(
    50_000_000, {f"layers.{i}.q_proj.weight": (512, 512) for i in range(8)}, 8, 512, 1408, 256, 16_000, 512
)
AT = Longest(200, 100)
LORA: dict[str, Any] = {"lora": {}}
ALL = {"sft": LORA, "reward_model": LORA, "dpo": LORA, "ppo": LORA}


def planned(method: dict[str, Any]) -> list[PlannedStage]:
    spec = JobSpec.model_validate({"model": "m", "dataset": "ds_a", "method": method})
    return expand(spec, model="m", dataset="ds_a")


def ppo_of(plan: list[PlannedStage]) -> PlannedStage:
    return next(stage for stage in plan if stage.name == "ppo")


def whole_models(stage: PlannedStage, plan: list[PlannedStage]) -> float:
    """By how many weights the estimate grows with each weight of the model."""
    added = 1_000_000
    larger = replace(SHAPE, parameters=SHAPE.parameters + added)
    grown = stage_memory(stage, larger, AT, plan=plan) - stage_memory(stage, SHAPE, AT, plan=plan)
    return grown / (4 * added)


@pytest.mark.parametrize(
    ("method", "whole"),
    [
        ({"type": "mpo", **ALL}, 1),
        ({"type": "mpo", "ppo": LORA}, 3),  # DPO's is the base; SFT and reward model stand beside it
        ({"type": "mpo", **ALL, "reward_model": {}}, 2),
        ({"type": "mpo", **ALL, "sft": {}}, 3),  # the adapters of DPO lie over SFT, and PPO's over DPO's
        ({"type": "mpo", **ALL, "dpo": {}}, 3),
        ({"type": "mpo", **ALL, "sft": None}, 1),
        ({"type": "mpo", "sft": None, "ppo": LORA}, 3),
        ({"type": "ppo", "ppo": LORA}, 2),  # SFT's is the base, the reference and what KL is measured to
        ({"type": "ppo", "sft": LORA, "reward_model": LORA, "ppo": LORA}, 1),
    ],
    ids=str,
)
def test_ppo_by_adapters_holds_a_model_for_each_base(method: dict[str, Any], whole: int) -> None:
    plan = planned(method)
    assert whole_models(ppo_of(plan), plan) == whole
    shared = planned({**method, "ppo": {**LORA, "critic": "shared_trunk"}})
    assert whole_models(ppo_of(shared), shared) == whole


def test_models_that_no_stage_of_the_plan_makes_are_taken_to_be_whole() -> None:
    models = {role: (Source.model(f"job_1:{role}"),) for role in ("sft", "reward_model")}
    policy = (Source.model("job_1:dpo"),)
    prompts = (Source.dataset("ds_a"),)
    inputs = {"policy": policy, "reference": policy, "prompts": prompts, **models}
    stage = PlannedStage("ppo", PPOStage(lora=LoRAConfig()), inputs, 0)
    assert whole_models(stage, []) == 3


def test_a_critic_that_copies_an_adapter_has_its_rank() -> None:
    plan = planned({"type": "mpo", **ALL, "reward_model": {"lora": {"rank": 64}}})
    stage = ppo_of(plan)
    assert isinstance(stage.config, PPOStage)
    networks = adapted_networks(stage, stage.config, LoRAConfig(), plan)
    assert [lora.rank for lora in networks.trained] == [16, 64]
    assert sorted(lora.rank for lora in networks.frozen) == [16, 16, 64]


def test_adapters_are_not_proposed_where_other_models_stay_whole() -> None:
    plan, shape = planned({"type": "mpo"}), replace(SHAPE, parameters=10**9)
    stage = ppo_of(plan)
    assert isinstance(stage.config, PPOStage)

    def memory_of(config: PPOStage) -> int:
        return stage_memory(replace(stage, config=config), shape, AT, plan=plan)

    three_models = 3 * 4 * shape.parameters
    assert nearest_fit(stage.config, memory_of, PROCESS_BYTES + three_models) is None
    adapted = stage.config.model_copy(update={"lora": LoRAConfig(), "gradient_checkpointing": True})
    nearest = nearest_fit(stage.config, memory_of, memory_of(adapted))
    assert nearest is not None
    assert "lora" in nearest[0]
