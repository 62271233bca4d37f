"""Estimated rows, tokens and memory, against what the stages themselves read and hold."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mpo.config import PPOStage, RewardModelStage, SFTStage
from mpo.errors import UnusableModel
from mpo.estimates_machine import Machine
from mpo.estimates_memory import stage_memory
from mpo.estimates_rows import NOT_SCORED, Rows, rows_by_source
from mpo.estimates_shape import ModelShape, read_shape
from mpo.estimates_time import assumed_seconds
from mpo.estimates_work import Longest, Work, are_lengths_known, longest, stage_work
from mpo.hold_out import hold_out_groups
from mpo.job_spec import JobSpec
from mpo.plan import PlannedStage, Source, expand, resolve
from mpo.records import PreferencePair, read_pairs, write_rows
from mpo.reward_model.train import pairs_at, training_rows
from mpo.token_counts import Integers, count_tokens, sample_rows
from mpo.tokenization import encode_pairs, load_tokenizer
from tests.mpo.tiny import RecordingReporter, task_of, word_pairs, write_policy

DATA = Source.dataset("ds_a")
SHAPE = ModelShape(10_000_000, {"layers.0.q_proj.weight": (256, 256)}, 4, 256, 512, 256, 8000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, and pairs of which some share a prompt and some are longer than what is read."""
    folder = tmp_path_factory.mktemp("estimates")
    write_policy(folder / "model")
    pairs = [replace(pair, prompt=f"{pair.prompt}{'red ' * (int(pair.id) % 9)}") for pair in word_pairs(40)]
    pairs += [PreferencePair(f"again {i}", pairs[i].prompt, "cat " * i, "dog") for i in range(8)]
    write_rows(folder / "rows.parquet", pairs)
    return folder


@cache
def counted(folder: Path) -> dict[str, Integers]:
    return count_tokens(sample_rows(folder / "rows.parquet"), folder / "model")


def plan(**method: Any) -> dict[str, PlannedStage]:
    lengths = {"max_prompt_tokens": 12, "max_response_tokens": 6}
    parts = {
        "sft": lengths | {"epochs": 3},
        "reward_model": lengths,
        "dpo": lengths | {"epochs": 2},
        "score": lengths | {"folds": 2},
        "ppo": {"max_prompt_tokens": 12},
        "evaluate": lengths,
    }
    spec = JobSpec.model_validate(
        {"model": "m", "dataset": "ds_a", "method": {"type": "mpo"} | parts | method}
    )
    stages = resolve(spec, expand(spec, model="m", dataset="ds_a"), 64)
    return {stage.name: stage for stage in stages}


def work(folder: Path, stages: dict[str, PlannedStage], name: str) -> Work | None:
    rows = Rows.of(DATA, sample_rows(folder / "rows.parquet"))
    found = rows_by_source(list(stages.values()), {DATA: rows}, lambda _split: None)
    return stage_work(stages[name], found, lambda _dataset: counted(folder))


def held_out(
    folder: Path, stages: dict[str, PlannedStage], tmp_path: Path
) -> dict[str, list[PreferencePair]]:
    """What the stage itself makes of the rows."""
    task = task_of(stages["hold_out"].config, tmp_path / "out", {"data": folder / "rows.parquet"})
    hold_out_groups(task, RecordingReporter())
    return {part: read_pairs(tmp_path / "out" / f"{part}.parquet") for part in ("train", "eval")}


def positions(folder: Path, pairs: list[PreferencePair]) -> tuple[int, int]:
    """Tokens of prompts with the chosen response, and of both sequences, as training encodes them."""
    rows, _ = encode_pairs(
        pairs, load_tokenizer(folder / "model"), max_prompt_tokens=12, max_response_tokens=6
    )
    chosen = sum(len(row.prompt_ids) + len(row.chosen_ids) for row in rows)
    return chosen, chosen + sum(len(row.prompt_ids) + len(row.rejected_ids) for row in rows)


def test_tokens_are_those_that_the_stages_read(folder: Path, tmp_path: Path) -> None:
    stages = plan()
    parts = held_out(folder, stages, tmp_path)
    chosen, both = positions(folder, parts["train"])
    fold = stages["reward_model_fold_2"].config
    assert isinstance(fold, RewardModelStage)
    data = tmp_path / "out" / "train.parquet"
    _, of_fold = positions(folder, list(pairs_at(data, training_rows(data, fold))))
    expected = {"sft": 3 * chosen, "reward_model": both, "score": both, "reward_model_fold_2": of_fold}
    found = {name: work(folder, stages, name) for name in expected}
    assert {name: round(w.tokens) for name, w in found.items() if w} == expected
    judge = work(folder, stages, "judge")
    assert judge is not None
    assert round(judge.read) == pytest.approx(both + positions(folder, parts["eval"])[1], rel=0.05)


def test_a_split_s_parts_are_taken_to_be_as_long_as_the_whole(folder: Path, tmp_path: Path) -> None:
    stages = plan(split={"easy_fraction": 0.25})
    _, both = positions(folder, held_out(folder, stages, tmp_path)["train"])
    dpo = work(folder, stages, "dpo")
    assert dpo is not None
    assert dpo.tokens == pytest.approx(2 * 0.25 * both)


def test_a_threshold_without_scores_is_not_guessed(folder: Path) -> None:
    stages = plan(split={"threshold": 0.5})
    rows = Rows.of(DATA, sample_rows(folder / "rows.parquet"))
    found = rows_by_source(list(stages.values()), {DATA: rows}, lambda _split: None)
    assert work(folder, stages, "dpo") is None
    assert work(folder, stages, "sft") is not None
    assert found[Source.stage("split", "easy")].why == NOT_SCORED
    known = rows_by_source(
        list(stages.values()), {DATA: rows}, lambda _split: {"easy": 0.5, "difficult": 0.5, "dropped": 0.0}
    )
    easy, train = known[Source.stage("split", "easy")], known[Source.stage("hold_out", "train")]
    assert easy.count == pytest.approx((train.count or 0) / 2)


def test_max_steps_bounds_what_is_trained(folder: Path) -> None:
    whole, bounded = (
        work(folder, plan(sft={"batch_pairs": 8} | more), "sft") for more in ({}, {"max_steps": 2})
    )
    assert whole is not None
    assert bounded is not None
    assert bounded.steps == 2
    assert bounded.tokens == pytest.approx(whole.tokens * 2 / whole.steps)


def test_more_of_anything_costs_no_less(folder: Path) -> None:
    small, large = (
        plan()["sft"],
        plan(sft={"epochs": 6, "max_prompt_tokens": 12, "max_response_tokens": 6})["sft"],
    )
    few, more = (work(folder, {**plan(), "sft": stage}, "sft") for stage in (small, large))
    assert few is not None
    assert more is not None
    assert more.tokens == 2 * few.tokens
    larger = replace(SHAPE, parameters=2 * SHAPE.parameters)
    assert assumed_seconds(small, few, SHAPE) < assumed_seconds(small, more, SHAPE)
    assert assumed_seconds(small, few, SHAPE) < assumed_seconds(small, few, larger)


def test_time_falls_with_gpus_and_bf16_and_not_with_processes_that_share_a_cpu() -> None:
    stage, work = plan()["dpo"], Work(tokens=1e6, trained=1e6, read=1e6, steps=100)
    exact = replace(stage, config=stage.config.model_copy(update={"precision": "fp32"}))

    def seconds(of: PlannedStage, **machine: Any) -> float:
        return assumed_seconds(of, work, SHAPE, Machine(**machine))

    assert seconds(stage, device="cuda") < seconds(exact, device="cuda") < seconds(stage)
    assert seconds(stage, device="cuda", ranks=2) < seconds(stage, device="cuda")
    assert seconds(stage, ranks=2) == seconds(stage)
    trl = replace(stage, config=stage.config.model_copy(update={"engine": "trl"}))
    assert seconds(trl, device="cuda", ranks=2) == seconds(trl, device="cuda"), "it trains on one GPU"


@pytest.mark.parametrize("name", ["ppo", "evaluate"])
def test_what_is_sampled_takes_its_time_in_fp32_whatever_the_precision(name: str) -> None:
    stage, sampled = plan()[name], Work(tokens=1e6, sampled=1e6)
    gpu = Machine(device="cuda")
    exact = replace(stage, config=stage.config.model_copy(update={"precision": "fp32"}))
    assert assumed_seconds(stage, sampled, SHAPE, gpu) == assumed_seconds(exact, sampled, SHAPE, gpu)
    read = Work(tokens=1e6, read=1e6)
    faster = assumed_seconds(stage, read, SHAPE, gpu) < assumed_seconds(exact, read, SHAPE, gpu)
    assert faster == (name == "ppo"), "evaluations do not read it"


@pytest.mark.parametrize("name", ["sft", "reward_model", "score", "dpo", "ppo", "evaluate"])
def test_memory_grows_with_batch_lengths_and_model(name: str) -> None:
    stage = plan()[name]
    changed = {"rollout_prompts": 128} if isinstance(stage.config, PPOStage) else {"batch_pairs": 32}
    wider = replace(stage, config=stage.config.model_copy(update=changed))
    at = Longest(100, 50)
    assert stage_memory(stage, SHAPE, at) <= stage_memory(wider, SHAPE, at)
    # Packed passes hold so many tokens at most; only a row that is longer makes one larger.
    assert stage_memory(stage, SHAPE, at) <= stage_memory(stage, SHAPE, Longest(200, 100))
    assert stage_memory(stage, SHAPE, at) < stage_memory(stage, SHAPE, Longest(4000, 2000))
    assert stage_memory(stage, SHAPE, at) < stage_memory(
        stage, replace(SHAPE, parameters=2 * SHAPE.parameters), at
    )


def test_a_shape_is_read_from_the_folder(folder: Path) -> None:
    from mpo.policies import load_policy

    shape, model = read_shape(folder / "model"), load_policy(folder / "model")
    assert shape.parameters == sum(p.numel() for p in model.state_dict().values())
    assert (shape.layers, shape.width, shape.inner, shape.kv_width) == (2, 32, 64, 16)
    assert len(shape.matrices) == 2 * 7


def test_nothing_known_of_the_rows_leaves_the_longest_that_is_allowed() -> None:
    stage = plan()["sft"]
    unknown = Rows.unknown(DATA, "it is still validated")
    rows = rows_by_source(list(plan().values()), {DATA: unknown}, lambda _split: None)
    assert isinstance(stage.config, SFTStage)
    assert longest(stage, rows, lambda _dataset: None) == Longest(12, 7)
    assert not are_lengths_known(stage, rows, lambda _dataset: None)
    assert stage_work(stage, rows, lambda _dataset: None) is None


@pytest.mark.parametrize("config", ["[]", "{}", '{"hidden_size": 8, "num_attention_heads": 0}', "no JSON"])
def test_a_folder_that_tells_no_shape_is_refused(folder: Path, tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes())
    with pytest.raises(UnusableModel, match="does not tell its shape"):
        read_shape(tmp_path)
