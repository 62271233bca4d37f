import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mpo.config import PPOStage
from mpo.errors import EmptySplit, StageInterrupted, UnusableModel
from mpo.policies import load_policy
from mpo.ppo.state import episode_counts
from mpo.ppo.train import load_training, train_ppo
from mpo.reporter import StageInput, StageTask
from tests.mpo.tiny import (
    RecordingReporter,
    task_of,
    write_pairs,
    write_policy,
    write_reward_model,
)

SETTINGS: dict[str, object] = {
    "rollout_prompts": 8,
    "mini_batches": 2,
    "epochs": 2,
    "max_new_tokens": 6,
    "max_prompt_tokens": 16,
    "max_response_tokens": 8,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    write_policy(folder / "dpo")
    write_policy(folder / "sft", seed=9)
    write_reward_model(folder / "reward_model", folder / "dpo")
    write_pairs(folder / "difficult.parquet")
    return folder


def ppo_task(
    house: Path, output: Path, resume: Path | None = None, prompts: Path | None = None, **config: object
) -> StageTask:
    settings = {**SETTINGS, **config}
    inputs = {
        "policy": house / "dpo",
        "reference": house / "dpo",
        "sft": house / "sft",
        "reward_model": house / "reward_model",
        "prompts": prompts or house / "difficult.parquet",
    }
    return task_of(PPOStage.model_validate(settings), output, inputs, resume=resume)


@pytest.mark.parametrize("critic", ["separate", "shared_trunk"])
def test_a_training_leaves_a_policy_metrics_and_a_summary(house: Path, tmp_path: Path, critic: str) -> None:
    reporter = RecordingReporter()
    train_ppo(ppo_task(house, tmp_path, critic=critic), reporter)
    assert [step[:2] for step in reporter.steps] == [(1, 3), (2, 3), (3, 3)]
    first = reporter.steps[0][2]
    assert first["kl"] == 0.0  # exactly: the policy is the reference
    assert first["kl_to_sft"] != 0.0
    assert reporter.steps[1][2]["kl"] != 0.0
    names = {"reward", "loss", "ratio_max", "clip_fraction", "entropy", "explained_variance", "eos_rate"}
    names |= {"response_tokens", "kl_coefficient", "learning_rate"}
    speeds = {"tokens", "rollout_tokens", "measure_tokens", "update_tokens"}
    assert names | {f"{speed}_per_second" for speed in speeds} <= first.keys()
    assert first["ratio_max"] >= 1.0
    assert [metrics["kl_coefficient"] for _, _, metrics in reporter.steps] == [0.05] * 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["iterations"], summary["optimizer_steps"], summary["stopped"]) == (3, 12, None)
    assert summary["episodes"] == summary["prompts"] == 24
    before = load_file(house / "dpo" / "model.safetensors")
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == before.keys()  # the policy alone
    after = load_policy(tmp_path / "model").state_dict()
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("critic", ["separate", "shared_trunk"])
def test_without_a_learning_rate_every_ratio_is_exactly_one(house: Path, tmp_path: Path, critic: str) -> None:
    reporter = RecordingReporter()
    train_ppo(ppo_task(house, tmp_path, learning_rate=0, critic=critic), reporter)
    for _, _, metrics in reporter.steps:
        assert (metrics["ratio_max"], metrics["clip_fraction"], metrics["kl"]) == (1.0, 0.0, 0.0)


def test_resumed_equals_uninterrupted_bit_for_bit(house: Path, tmp_path: Path) -> None:
    train_ppo(ppo_task(house, tmp_path / "whole"), whole := RecordingReporter())
    interrupted = RecordingReporter(kept=tmp_path / "checkpoint", stop_after=2)
    with pytest.raises(StageInterrupted):
        train_ppo(ppo_task(house, tmp_path / "parts"), interrupted)
    assert interrupted.checkpoints == [2]
    train_ppo(ppo_task(house, tmp_path / "parts", tmp_path / "checkpoint"), resumed := RecordingReporter())
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    steps = [
        [{k: v for k, v in metrics.items() if "per_second" not in k} for _, _, metrics in reporter.steps]
        for reporter in (whole, interrupted, resumed)
    ]
    assert steps[0] == steps[1] + steps[2]


def test_stop_during_a_rollout_leaves_the_iteration_for_the_resumed_run(house: Path, tmp_path: Path) -> None:
    class StopInRollout(RecordingReporter):
        asked = 0

        def should_stop(self) -> bool:
            self.asked += 1
            return self.asked == 10  # later answers are no, and the broken responses still must not count

    with pytest.raises(StageInterrupted):
        train_ppo(ppo_task(house, tmp_path), reporter := StopInRollout())
    assert (reporter.steps, reporter.checkpoints) == ([], [0])


def test_one_prompt_is_enough(house: Path, tmp_path: Path) -> None:
    one = write_pairs(tmp_path / "one.parquet", count=1)
    task = ppo_task(house, tmp_path / "one prompt", prompts=one)
    train_ppo(task, reporter := RecordingReporter())
    assert [step[:2] for step in reporter.steps] == [(1, 1)]
    assert (task.output / "model" / "model.safetensors").exists()
    again = ppo_task(house, tmp_path / "many episodes", prompts=one, episodes=20)
    train_ppo(again, reporter := RecordingReporter())
    summary = json.loads((again.output / "summary.json").read_text())
    assert (summary["prompts"], summary["episodes"], summary["iterations"]) == (1, 20, 3)


def test_without_a_prompt_there_is_nothing_to_train_on(house: Path, tmp_path: Path) -> None:
    none = write_pairs(tmp_path / "none.parquet", count=0)
    with pytest.raises(EmptySplit, match="the role prompts holds none"):
        train_ppo(ppo_task(house, tmp_path / "out", prompts=none), RecordingReporter())


def test_weights_of_policy_reference_and_sft_are_alike_to_torch(house: Path, tmp_path: Path) -> None:
    """Else it multiplies by them in different ways, and equal weights do not give equal bits."""
    networks = load_training(ppo_task(house, tmp_path), RecordingReporter()).networks
    assert networks.sft is not None
    for network in (networks.policy, networks.reference, networks.sft):
        assert all(weight.requires_grad for weight in network.parameters())


def test_kl_coefficient_and_reference_follow_the_policy(house: Path, tmp_path: Path) -> None:
    steps = {}
    for name, options in {
        "fixed": {},
        "controller": {"kl_controller": {"target": 100.0, "horizon": 16}},
        "ema": {"ema_reference": 0.01},
    }.items():
        train_ppo(ppo_task(house, tmp_path / name, **options), reporter := RecordingReporter())
        steps[name] = [metrics for _, _, metrics in reporter.steps]
    coefficients = [metrics["kl_coefficient"] for metrics in steps["controller"]]
    # Far below the target: 8 episodes of 16, so a factor of 1 - 0.2 · 8 / 16 an iteration.
    assert coefficients == pytest.approx([0.05, 0.045, 0.0405])
    assert steps["ema"][0]["kl"] == steps["fixed"][0]["kl"] == 0.0
    assert abs(steps["ema"][1]["kl"]) < 0.1 * abs(steps["fixed"][1]["kl"])


def test_one_optimizer_step_where_only_one_is_allowed(house: Path, tmp_path: Path) -> None:
    train_ppo(ppo_task(house, tmp_path, max_steps=1), reporter := RecordingReporter())
    assert [step[:2] for step in reporter.steps] == [(1, 1)]
    assert json.loads((tmp_path / "summary.json").read_text())["optimizer_steps"] == 1


def test_training_stops_where_the_kl_passes_its_limit(house: Path, tmp_path: Path) -> None:
    train_ppo(ppo_task(house, tmp_path, max_kl=1e-9, learning_rate=3e-2), reporter := RecordingReporter())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["iterations"] < 3
    assert "max_kl" in summary["stopped"]
    assert "max_kl" in reporter.warnings[0]
    assert "loss" not in reporter.steps[-1][2]


def test_episodes_are_spread_evenly_over_the_iterations() -> None:
    assert episode_counts(PPOStage(rollout_prompts=64), 65) == [32, 33]
    assert episode_counts(PPOStage(rollout_prompts=64), 10) == [10]
    assert episode_counts(PPOStage(rollout_prompts=8, episodes=20), 5) == [6, 7, 7]
    assert episode_counts(PPOStage(rollout_prompts=8, max_steps=17), 80) == [8, 8]


def test_models_of_another_vocabulary_are_refused_before_training(house: Path, tmp_path: Path) -> None:
    task = ppo_task(house, tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(house / "sft", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    inputs = {**task.inputs, "reference": (StageInput("other", other),)}
    reporter = RecordingReporter()
    with pytest.raises(UnusableModel, match="other, the reference, has another vocabulary than dpo"):
        train_ppo(replace(task, inputs=inputs), reporter)
    assert reporter.steps == []
