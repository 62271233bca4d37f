"""PPO on two processes against PPO on one."""

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.config import PPOStage
from mpo.errors import StageInterrupted, TrainingDiverged
from mpo.ppo import iteration, update
from mpo.process_group import ProcessGroup
from mpo.reporter import StageTask
from mpo.stages import run_stage as run_alone
from tests.mpo import two_ranks
from tests.mpo.ppo.test_train import SETTINGS
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy, write_reward_model
from tests.mpo.two_ranks import Run, TwoRanks, assert_alike, weights

CONFIGS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared_trunk": {"critic": "shared_trunk"},
    "lora": {"lora": {"rank": 4}, "learning_rate": 1e-2},
    "moving": {"ema_reference": 0.5, "kl_controller": {"target": 0.1, "horizon": 16}},
    # Iterations of 6 and 7 episodes, in four steps each: some have one episode, so that one rank has none.
    "uneven": {"rollout_prompts": 8, "episodes": 20, "mini_batches": 4},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo ranks")
    write_policy(folder / "policy")
    write_policy(folder / "sft", seed=9)
    write_reward_model(folder / "reward_model", folder / "policy")
    write_pairs(folder / "prompts.parquet", count=16)
    return folder


@pytest.fixture(scope="module")
def two(rank_pairs: TwoRanks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with rank_pairs.pair(tmp_path_factory.mktemp("two")) as run:
        yield run


def task_for(house: Path, output: Path, resume: Path | None = None, **changed: Any) -> StageTask:
    settings = {**SETTINGS, "max_grad_norm": 0.5, **changed}
    inputs = {role: house / role for role in ("policy", "sft", "reward_model")}
    inputs |= {"reference": house / "policy", "prompts": house / "prompts.parquet"}
    return task_of(PPOStage.model_validate(settings), output, inputs, resume=resume)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_train_as_one_does(two: Run, house: Path, tmp_path: Path, name: str) -> None:
    alone, both = (task_for(house, tmp_path / of, **CONFIGS[name]) for of in ("alone", "both"))
    run_alone(alone, reporter := RecordingReporter())
    steps, _ = two(two_ranks.run_stage, both)
    assert_alike(steps, reporter.steps)
    assert steps[-1][2]["kl"] != 0.0, "nothing was learnt"
    assert steps[0][2]["kl"] == 0.0  # exactly: the policy is the reference, on whichever rank
    torch.testing.assert_close(weights(both), weights(alone), rtol=0, atol=2e-5)


def test_without_a_learning_rate_every_ratio_is_exactly_one(two: Run, house: Path, tmp_path: Path) -> None:
    steps, _ = two(two_ranks.run_stage, task_for(house, tmp_path, learning_rate=0))
    assert [(metrics["ratio_max"], metrics["kl"]) for _, _, metrics in steps] == [(1.0, 0.0)] * 2


def test_in_bf16_the_first_ratios_are_exactly_one_too(two: Run, house: Path, tmp_path: Path) -> None:
    once: dict[str, Any] = {"precision": "bf16", "epochs": 1, "mini_batches": 1}
    steps, _ = two(two_ranks.run_stage, task_for(house, tmp_path / "both", **once))
    run_alone(task_for(house, tmp_path / "alone", **once), alone := RecordingReporter())
    assert {metrics["ratio_max"] for _, _, metrics in steps} == {1.0}
    assert steps[0][2]["kl"] == 0.0
    assert steps[-1][2]["kl"] != 0.0, "nothing was learnt"
    assert steps[0][2]["loss"] == pytest.approx(alone.steps[0][2]["loss"], rel=1e-2)


def test_a_resumed_training_equals_the_uninterrupted_one(two: Run, house: Path, tmp_path: Path) -> None:
    whole, first = (task_for(house, tmp_path / name) for name in ("whole", "first"))
    two(two_ranks.run_stage, whole)
    two(two_ranks.interrupt_stage, first, 1, tmp_path / "kept")
    rest = task_for(house, tmp_path / "rest", resume=tmp_path / "kept")
    two(two_ranks.run_stage, rest)
    assert torch.equal(weights(rest), weights(whole))


def test_all_leave_an_iteration_whose_rollouts_one_has_broken_off(
    two: Run, house: Path, tmp_path: Path
) -> None:
    reported, _ = two(stop_the_second_rank_s_rollouts, task_for(house, tmp_path))
    assert reported == ([], [0])


def stop_the_second_rank_s_rollouts(group: ProcessGroup, task: StageTask) -> tuple[list[Any], list[int]]:
    class StopInRollout(RecordingReporter):
        asked = 0

        def should_stop(self) -> bool:
            self.asked += 1
            return group.number == 1 and self.asked == 5

    reporter = StopInRollout()
    with pytest.raises(StageInterrupted):
        run_alone(task, reporter, group)
    return reporter.steps, reporter.checkpoints


@pytest.mark.parametrize("phase", ["measuring", "updating"])
def test_micro_batches_of_all_are_halved_where_the_memory_of_one_was_short(
    two: Run, house: Path, tmp_path: Path, phase: str
) -> None:
    alone, both = (task_for(house, tmp_path / of) for of in ("alone", "both"))
    run_alone(alone, reporter := RecordingReporter())
    (steps, warnings), (_, others) = two(be_short_once_on_the_second_rank, both, phase)
    assert_alike(steps, reporter.steps)
    assert warnings == others
    assert "passes are half as large" in warnings[-1]


def be_short_once_on_the_second_rank(
    group: ProcessGroup, task: StageTask, phase: str
) -> tuple[list[Any], list[str]]:
    reporter, calls = RecordingReporter(), count()
    module, name = {
        "measuring": (iteration, "measure_own_tokens"),
        "updating": (update, "_accumulate_until_broken"),
    }[phase]
    real = getattr(module, name)

    def short_once(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        if group.number == 1 and next(calls) == 0:
            raise torch.OutOfMemoryError
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, short_once)
        run_alone(task, reporter, group)
    return reporter.steps, reporter.warnings


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_alike(two: Run, house: Path, tmp_path: Path) -> None:
    (told, episodes), (told_too, episodes_too) = two(break_the_second_rank_s_loss, task_for(house, tmp_path))
    assert told == told_too
    assert "The loss is not finite in iteration 1, optimizer step 1." in told
    assert episodes == episodes_too
    assert len(episodes) == 2  # of the micro-batch of four, those that the rank has


def break_the_second_rank_s_loss(group: ProcessGroup, task: StageTask) -> tuple[str, list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        if group.number == 1:
            patch.setattr("mpo.ppo.update.ppo_value_loss", infinite_loss)
        with pytest.raises(TrainingDiverged) as caught:
            run_alone(task, RecordingReporter(), group)
    return str(caught.value), caught.value.facts["episodes"]


def infinite_loss(values: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return values.sum() * math.inf
