"""Trainings on two processes against the same trainings on one."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, ScoreStage, SFTStage, Stage
from mpo.errors import OutOfMemory, RankFailed, StageInterrupted, TrainingDiverged
from mpo.process_group import ProcessGroup
from mpo.ranks import ALONE, OneRank, share
from mpo.records import write_rows
from mpo.reporter import StageTask
from mpo.reward_model.objective import PairRewards
from mpo.spreading import is_spread
from mpo.stages import run_stage as run_alone
from tests.mpo import two_ranks
from tests.mpo.tiny import RecordingReporter, task_of, untimed, word_pairs, write_policy
from tests.mpo.two_ranks import Run, TwoRanks, assert_alike, weights

PAIRS = 25
STEPS = {"batch_pairs": 8, "max_prompt_tokens": 24, "max_response_tokens": 12}
"""Of 25 pairs the fourth step has one, so that one of two ranks has none."""
LORA = {"rank": 4}
CONFIGS: dict[str, Stage] = {
    "sft": SFTStage(**STEPS, learning_rate=1e-3),
    "reward_model": RewardModelStage(**STEPS, learning_rate=1e-3, centring=0.01, epochs=2),
    "dpo": DPOStage(**STEPS, learning_rate=1e-3),
    "curriculum": DPOStage(**STEPS, learning_rate=1e-3, curriculum=[1.0]),
    "sft_lora": SFTStage(**STEPS, learning_rate=1e-2, lora=LORA),
    "reward_model_lora": RewardModelStage(**STEPS, learning_rate=1e-3, lora=LORA),
    "dpo_lora": DPOStage(**STEPS, learning_rate=1e-2, lora=LORA),
}
ROLES = {"sft": "policy", "reward_model": "backbone", "dpo": "policy"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return house_of(tmp_path_factory.mktemp("ranks"))


def house_of(folder: Path) -> Path:
    """A base and pairs with gaps, for `task_for`."""
    write_policy(folder / "base")
    pairs = [replace(pair, gap=float(row % 3)) for row, pair in enumerate(word_pairs(PAIRS))]
    write_rows(folder / "pairs.parquet", pairs)
    return folder


@pytest.fixture(scope="module")
def two(rank_pairs: TwoRanks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with rank_pairs.pair(tmp_path_factory.mktemp("two")) as run:
        yield run


@pytest.fixture
def doomed(rank_pairs: TwoRanks, tmp_path: Path) -> Iterator[Run]:
    """Two ranks of a test's own, which it may fail."""
    with rank_pairs.pair(tmp_path) as run:
        yield run


def task_for(house: Path, output: Path, config: Stage, resume: Path | None = None) -> StageTask:
    inputs = {ROLES[config.kind]: house / "base", "data": house / "pairs.parquet"}
    if config.kind == "dpo":
        inputs["reference"] = house / "base"
    if config.kind == "reward_model":
        inputs["eval"] = house / "pairs.parquet"
    return task_of(config, output, inputs, resume=resume)


def summary(task: StageTask) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((task.output / "summary.json").read_text())
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_train_as_one_does(two: Run, house: Path, tmp_path: Path, name: str) -> None:
    alone, both = (task_for(house, tmp_path / of, CONFIGS[name]) for of in ("alone", "both"))
    run_alone(alone, reporter := RecordingReporter())
    steps, _ = two(two_ranks.run_stage, both)
    assert_alike(steps, reporter.steps)
    assert all(metrics["loss"] > 0 for _, _, metrics in steps)
    torch.testing.assert_close(weights(both), weights(alone), rtol=0, atol=2e-5)
    found, expected = summary(both), summary(alone)
    assert found.keys() == expected.keys()
    plain = [name for name, value in expected.items() if isinstance(value, int | float)]
    assert {name: found[name] for name in plain} == pytest.approx(
        {name: expected[name] for name in plain}, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "dpo_lora"])
def test_two_ranks_train_in_bf16(two: Run, house: Path, tmp_path: Path, name: str) -> None:
    compare_in_bf16(two, house, tmp_path, CONFIGS[name])


def compare_in_bf16(two: Run, house: Path, tmp_path: Path, config: Any) -> None:
    """Their losses are one rank's but for roundings, as their passes have other rows; and not fp32's."""
    config = config.model_copy(update={"precision": "bf16"})
    both = task_for(house, tmp_path / "both", config)
    run_alone(task_for(house, tmp_path / "alone", config), alone := RecordingReporter())
    plain = config.model_copy(update={"precision": "fp32"})
    run_alone(task_for(house, tmp_path / "fp32", plain), fp32 := RecordingReporter())
    found = [metrics["loss"] for _, _, metrics in two(two_ranks.run_stage, both)[0]]
    assert found == pytest.approx([metrics["loss"] for _, _, metrics in alone.steps], rel=1e-2)
    assert found != pytest.approx([metrics["loss"] for _, _, metrics in fp32.steps], rel=1e-5)


@pytest.mark.parametrize("name", ["reward_model", "curriculum"])
def test_a_resumed_training_equals_the_uninterrupted_one(
    two: Run, house: Path, tmp_path: Path, name: str
) -> None:
    assert_resumed_equals_whole(two, house, tmp_path, CONFIGS[name])


def assert_resumed_equals_whole(
    two: Run, house: Path, tmp_path: Path, config: Stage
) -> tuple[list[Any], list[Any]]:
    """Its steps before it was interrupted, and those of the uninterrupted one. The checkpoint is `kept`."""
    whole, kept = task_for(house, tmp_path / "whole", config), tmp_path / "kept"
    steps, _ = two(two_ranks.run_stage, whole)
    first, _ = two(two_ranks.interrupt_stage, task_for(house, tmp_path / "first", config), 2, kept)
    rest = task_for(house, tmp_path / "rest", config, resume=kept)
    again = first + two(two_ranks.run_stage, rest)[0]
    assert [(*place, untimed(m)) for *place, m in again] == [(*place, untimed(m)) for *place, m in steps]
    assert torch.equal(weights(rest), weights(whole))
    return first, steps


def test_a_training_goes_on_with_another_number_of_ranks(two: Run, house: Path, tmp_path: Path) -> None:
    config, kept = CONFIGS["reward_model"], tmp_path / "kept"
    run_alone(task_for(house, tmp_path / "alone", config), alone := RecordingReporter())
    first, _ = two(two_ranks.interrupt_stage, task_for(house, tmp_path / "first", config), 3, kept)
    run_alone(task_for(house, tmp_path / "rest", config, resume=kept), rest := RecordingReporter())
    assert_alike(first + rest.steps, alone.steps)


def test_all_stop_where_one_is_asked_to(two: Run, house: Path, tmp_path: Path) -> None:
    task = task_for(house, tmp_path, CONFIGS["reward_model"])
    reported, _ = two(stop_the_second_rank, task)
    assert reported == 1
    assert not (tmp_path / "model").exists()


def stop_the_second_rank(group: ProcessGroup, task: StageTask) -> int:
    reporter = RecordingReporter(stop_after=None if group.number == 0 else 0)
    with pytest.raises(StageInterrupted):
        run_alone(task, reporter, group)
    return len(reporter.steps)


def test_passes_of_all_are_halved_where_the_memory_of_one_was_short(
    two: Run, house: Path, tmp_path: Path
) -> None:
    alone, both = (task_for(house, tmp_path / of, CONFIGS["reward_model"]) for of in ("alone", "both"))
    run_alone(alone, reporter := RecordingReporter())
    (steps, warnings), (_, others) = two(be_short_on_the_second_rank, both)
    assert_alike(steps, reporter.steps)
    assert len(warnings) == len(others) == 1
    assert "passes are half as large" in warnings[0]


def be_short_on_the_second_rank(group: ProcessGroup, task: StageTask) -> tuple[list[Any], list[str]]:
    reporter = RecordingReporter()
    with pytest.MonkeyPatch.context() as patch:
        if group.number == 1:
            patch.setattr(PairRewards, "losses", Scarce(PairRewards.losses, rows=3))
        run_alone(task, reporter, group)
    return reporter.steps, reporter.warnings


class Scarce:
    """`losses` of a device that holds so many rows at once."""

    def __init__(self, losses: Callable[..., Any], rows: int) -> None:
        self.losses, self.rows = losses, rows

    def __get__(self, objective: PairRewards, _: type) -> Callable[..., Any]:
        return partial(self, objective)

    def __call__(self, objective: PairRewards, model: PreTrainedModel, rows: Sequence[int]) -> Any:
        if len(rows) > self.rows:
            raise torch.OutOfMemoryError("the device is full")
        return self.losses(objective, model, rows)


def test_a_rank_that_fails_ends_all_with_its_error(doomed: Run, house: Path, tmp_path: Path) -> None:
    task = task_for(house, tmp_path / "out", CONFIGS["reward_model"])
    errors = doomed(fail_on_the_second_rank, task)
    for error in errors:
        assert isinstance(error, OutOfMemory)
        assert "estimated to need" in str(error)  # so that its owner reads what can be done about it


def fail_on_the_second_rank(group: ProcessGroup, task: StageTask) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if group.number == 1:
            patch.setattr(PairRewards, "losses", Scarce(PairRewards.losses, rows=0))
        two_ranks.run_stage(group, task)


def test_a_rank_that_is_killed_ends_all(doomed: Run, house: Path, tmp_path: Path) -> None:
    task = task_for(house, tmp_path / "out", CONFIGS["reward_model"])
    error, nothing = doomed(die_on_the_second_rank, task)
    assert isinstance(error, RankFailed)
    assert "ended without a word" in str(error)
    assert error.retryable
    assert nothing is None


def die_on_the_second_rank(group: ProcessGroup, task: StageTask) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if group.number == 1:
            patch.setattr(PairRewards, "losses", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        two_ranks.run_stage(group, task)


def test_a_rank_that_is_silent_is_waited_for_so_long(rank_pairs: TwoRanks, tmp_path: Path) -> None:
    with rank_pairs.pair(tmp_path, patience=timedelta(seconds=2)) as run:
        error, _ = run(be_silent_on_the_second_rank)
    assert isinstance(error, RankFailed)
    assert "did not answer within 2 seconds" in str(error)


def be_silent_on_the_second_rank(group: ProcessGroup) -> None:
    if group.number == 0:
        group.gather_objects(None)


def test_a_training_that_diverges_ends_on_all_at_once(doomed: Run, house: Path, tmp_path: Path) -> None:
    config = CONFIGS["reward_model"].model_copy(update={"centring": 1e38})
    errors = doomed(two_ranks.run_stage, task_for(house, tmp_path / "out", config))
    assert [type(error) for error in errors] == [TrainingDiverged] * 2
    assert str(errors[0]) == str(errors[1])


def test_one_rank_waits_for_nobody() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum(tensor) is tensor
    assert ALONE.gather_objects("a") == ["a"]


@given(sizes=st.lists(st.integers(1, 100), max_size=20), count=st.integers(1, 5), turn=st.integers(0, 9))
def test_shares_hold_every_place_once_and_are_of_like_sizes(sizes: list[int], count: int, turn: int) -> None:
    shares = [share(OneRank((part - turn) % count, count), sizes, turn) for part in range(count)]
    assert [place for part in shares for place in part] == list(range(len(sizes)))
    totals = [sum(sizes[place] for place in part) for part in shares]
    assert max(totals) - min(totals) <= 2 * max(sizes, default=0)


def test_trainings_of_our_own_engine_are_spread() -> None:
    spread = [SFTStage(), RewardModelStage(), DPOStage(), PPOStage()]
    alone = [RewardModelStage(engine="trl"), DPOStage(engine="trl"), ScoreStage(), EvaluateStage()]
    assert [is_spread(config) for config in (*spread, *alone)] == [True] * 4 + [False] * 4
