"""Trainings whose weights are in shards on two processes against the same trainings on one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mpo.adapters import Opened
from mpo.config import DPOStage, RewardModelStage, SFTStage, Stage
from mpo.errors import OutOfMemory, RankFailed
from mpo.packed_rows import TOKENS_AT_ONCE
from mpo.policies import load_policy, load_reward_model, save_model
from mpo.process_group import ProcessGroup
from mpo.ranks import Ranks
from mpo.reporter import StageTask
from mpo.reward_model.objective import PairRewards
from mpo.sharding import in_shards, is_sharded
from mpo.stages import run_stage as run_alone
from tests.mpo import two_ranks
from tests.mpo.test_ranks import (
    LORA,
    STEPS,
    Scarce,
    assert_resumed_equals_whole,
    compare_in_bf16,
    die_on_the_second_rank,
    house_of,
    task_for,
)
from tests.mpo.tiny import RecordingReporter, write_reward_model
from tests.mpo.two_ranks import Run, TwoRanks, assert_alike, weights

CONFIGS: dict[str, Stage] = {
    "sft": SFTStage(**STEPS, learning_rate=1e-3),
    "reward_model": RewardModelStage(**STEPS, learning_rate=1e-3, centring=0.01, epochs=2),
    "dpo": DPOStage(**STEPS, learning_rate=1e-3),
    "curriculum": DPOStage(**STEPS, learning_rate=1e-3, curriculum=[1.0]),
    "recomputed": DPOStage(**STEPS, learning_rate=1e-3, gradient_checkpointing=True),
    "sft_lora": SFTStage(**STEPS, learning_rate=1e-2, lora=LORA),  # whole on each rank, and still right
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return house_of(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of a model whose head has the weights of its embeddings."""
    folder = house_of(tmp_path_factory.mktemp("tied"))
    config = AutoConfig.from_pretrained(folder / "base", tie_word_embeddings=True)
    torch.manual_seed(4)
    save_model(AutoModelForCausalLM.from_config(config), folder / "base", folder / "tied")
    (folder / "base").rename(folder / "untied")
    (folder / "tied").rename(folder / "base")
    return folder


@pytest.fixture(scope="module")
def two(rank_pairs: TwoRanks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with rank_pairs.pair(tmp_path_factory.mktemp("two"), sharded=True) as run:
        yield run


@pytest.fixture
def doomed(rank_pairs: TwoRanks, tmp_path: Path) -> Iterator[Run]:
    with rank_pairs.pair(tmp_path, sharded=True) as run:
        yield run


def compare(two: Run, house: Path, folder: Path, config: Stage, case: Any = two_ranks.run_stage) -> None:
    alone, both = (task_for(house, folder / of, config) for of in ("alone", "both"))
    run_alone(alone, reporter := RecordingReporter())
    steps, _ = two(case, both)
    assert_alike(steps, reporter.steps)
    torch.testing.assert_close(weights(both), weights(alone), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_shards_train_as_one_process_does(two: Run, house: Path, tmp_path: Path, name: str) -> None:
    compare(two, house, tmp_path, CONFIGS[name])


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "recomputed"])
def test_shards_train_in_bf16(two: Run, house: Path, tmp_path: Path, name: str) -> None:
    compare_in_bf16(two, house, tmp_path, CONFIGS[name])


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo"])
def test_a_head_that_has_the_weights_of_the_embeddings(
    two: Run, tied: Path, tmp_path: Path, name: str
) -> None:
    compare(two, tied, tmp_path, CONFIGS[name])


@pytest.mark.parametrize("name", ["sft", "reward_model"])
def test_ranks_with_unlike_numbers_of_passes(two: Run, house: Path, tmp_path: Path, name: str) -> None:
    compare(two, house, tmp_path, CONFIGS[name], in_small_passes)


def in_small_passes(group: ProcessGroup, task: StageTask) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOKENS_AT_ONCE, "cpu", 60 if group.number == 0 else 20)
        return two_ranks.run_stage(group, task)


@pytest.mark.parametrize("kind", ["policy", "reward_model"])
def test_each_rank_holds_a_part_of_every_weight(two: Run, house: Path, tmp_path: Path, kind: str) -> None:
    folder = house / "base"
    if kind == "reward_model":
        folder = write_reward_model(tmp_path / "reward_model", folder)
    model = (load_reward_model if kind == "reward_model" else load_policy)(folder)
    whole = sum(weight.numel() for weight in model.parameters())
    parts = two(numbers_held, folder, kind)
    assert sum(held for held, _ in parts) == whole
    assert all(held < 0.6 * whole for held, _ in parts)
    assert all(sharded for _, sharded in parts)


def numbers_held(ranks: Ranks, folder: Path, kind: str) -> tuple[int, bool]:
    model: PreTrainedModel = (load_reward_model if kind == "reward_model" else load_policy)(folder)
    with in_shards(Opened(model), ranks) as trained:
        held = [weight.to_local() for weight in trained.parameters()]
        return sum(part.numel() for part in held), is_sharded(list(trained.parameters()))


@pytest.mark.parametrize("name", ["reward_model", "curriculum"])
def test_a_resumed_training_equals_the_uninterrupted_one_also_without_shards(
    two: Run, house: Path, tmp_path: Path, name: str
) -> None:
    first, steps = assert_resumed_equals_whole(two, house, tmp_path, CONFIGS[name])
    alone = task_for(house, tmp_path / "alone", CONFIGS[name], resume=tmp_path / "kept")
    run_alone(alone, reporter := RecordingReporter())
    assert_alike(first + reporter.steps, steps)


def test_a_rank_whose_memory_is_short_ends_all_with_its_error(
    doomed: Run, house: Path, tmp_path: Path
) -> None:
    errors = doomed(be_short_within_a_pass, task_for(house, tmp_path / "out", CONFIGS["reward_model"]))
    assert [type(error) for error in errors] == [OutOfMemory] * 2


def be_short_within_a_pass(group: ProcessGroup, task: StageTask) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if group.number == 1:
            patch.setattr(PairRewards, "losses", Scarce(PairRewards.losses, rows=0))
        two_ranks.run_stage(group, task)


def test_a_rank_that_is_killed_within_a_pass_ends_all(doomed: Run, house: Path, tmp_path: Path) -> None:
    error, _ = doomed(die_on_the_second_rank, task_for(house, tmp_path / "out", CONFIGS["reward_model"]))
    assert isinstance(error, RankFailed)
