import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mpo.config import PPOStage
from mpo.errors import StageInterrupted
from mpo.generation import SampledResponse
from mpo.policies import load_policy
from mpo.ppo import iteration
from mpo.ppo.rollouts import Networks
from mpo.ppo.state import PPOTraining, episode_counts, new_optimizers
from mpo.ppo.train import train_ppo
from mpo.reporter import StageTask
from mpo.tokenization import Terminators
from tests.mpo.tiny import (
    RecordingReporter,
    task_of,
    write_pairs,
    write_policy,
    write_reward_model,
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    write_policy(folder / "dpo")
    write_policy(folder / "sft", seed=9)
    write_reward_model(folder / "reward_model", folder / "dpo")
    write_pairs(folder / "difficult.parquet")
    return folder


def ppo_task(house: Path, output: Path, resume: Path | None = None, **config: object) -> StageTask:
    settings = {
        "rollout_prompts": 8,
        "mini_batches": 2,
        "epochs": 2,
        "max_new_tokens": 6,
        "max_prompt_tokens": 16,
        "max_response_tokens": 8,
        "learning_rate": 1e-3,
        **config,
    }
    inputs = {
        "policy": house / "dpo",
        "reference": house / "dpo",
        "sft": house / "sft",
        "reward_model": house / "reward_model",
        "prompts": house / "difficult.parquet",
    }
    return task_of(PPOStage.model_validate(settings), output, inputs, resume=resume)


def test_a_training_leaves_a_policy_metrics_and_a_summary(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    train_ppo(ppo_task(house, tmp_path), reporter)
    assert [step[:2] for step in reporter.steps] == [(1, 3), (2, 3), (3, 3)]
    first = reporter.steps[0][2]
    assert first["kl"] == 0.0  # exactly: the policy is the reference
    assert first["kl_to_sft"] != 0.0
    assert reporter.steps[1][2]["kl"] != 0.0
    names = {"reward", "loss", "ratio_max", "clip_fraction", "entropy", "explained_variance", "eos_rate"}
    assert names | {"response_tokens", "tokens_per_second"} <= first.keys()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["iterations"], summary["optimizer_steps"], summary["stopped"]) == (3, 12, None)
    assert summary["episodes"] == summary["prompts"] == 24
    before = load_file(house / "dpo" / "model.safetensors")
    after = load_policy(tmp_path / "model").state_dict()
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_without_a_learning_rate_every_ratio_is_exactly_one(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    train_ppo(ppo_task(house, tmp_path, learning_rate=0), reporter)
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
    timed = {"tokens_per_second", "rollout_tokens_per_second", "update_tokens_per_second"}
    steps = [
        [{k: v for k, v in metrics.items() if k not in timed} for _, _, metrics in reporter.steps]
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


class TableModel(torch.nn.Module):
    """Logits of a bandit: one action, whatever the prompt; a value head beside it."""

    def __init__(self, arms: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.linspace(0, 1, arms))
        self.score = torch.nn.Linear(1, 1, bias=False)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=arms))
        self.device = torch.device("cpu")

    def base_model(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.ones(*input_ids.shape, 1))

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1)[:, -2:])


def test_ppo_on_a_bandit_reaches_the_known_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """π* ∝ π_ref · exp(r / β)."""
    torch.manual_seed(0)
    arms, beta = 5, 0.5
    rewards = torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0])
    policy, reference = TableModel(arms), TableModel(arms)

    def draw(model: TableModel, prompts: list[list[int]], *_: object) -> list[SampledResponse]:
        ids = torch.multinomial(model.logits.softmax(-1), len(prompts), replacement=True)
        return [SampledResponse([token], "stop") for token in ids.tolist()]

    def score(_model: object, _prompts: object, responses: list[list[int]]) -> torch.Tensor:
        return rewards[torch.tensor(responses)[:, 0]]

    monkeypatch.setattr("mpo.ppo.rollouts.sample", draw)
    monkeypatch.setattr(iteration, "score_responses", score)
    monkeypatch.setattr(SampledResponse, "terminated_ids", lambda self, _id: self.token_ids)
    config = PPOStage(
        learning_rate=0.05, kl_coefficient=beta, rollout_prompts=128, episodes=128 * 40, max_new_tokens=1
    )
    networks = Networks(policy, reference, TableModel(arms), 0.0)  # type: ignore[arg-type]
    training = PPOTraining(
        config,
        seed=0,
        networks=networks,
        reward_model=reference,  # type: ignore[arg-type]
        prompts=[[0]],
        terminators=Terminators(1, frozenset(), 0),
        counts=episode_counts(config, 1),
        optimizers=new_optimizers(networks, config.learning_rate),
    )
    while training.iteration < len(training.counts):
        assert iteration.iterate(training, lambda: False) is not None
    best = (reference.logits.detach().log_softmax(-1) + rewards / beta).softmax(-1)
    assert_close(policy.logits.detach().softmax(-1), best, atol=0.03, rtol=0)
    assert float((reference.logits.detach().softmax(-1) - best).abs().max()) > 0.2
