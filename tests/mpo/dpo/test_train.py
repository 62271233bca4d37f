import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from mpo.adapters import ADAPTER, weights_digest
from mpo.config import DPOStage, SFTStage
from mpo.dpo.train import train_dpo
from mpo.errors import EmptySplit, InvalidScores, TooFewRows, TrainingDiverged, UnusableModel
from mpo.policies import load_policy
from mpo.records import write_rows
from mpo.sft.train import train_sft
from mpo.tokenization import load_tokenizer
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import (
    RecordingReporter,
    task_of,
    tiny_llama,
    untimed,
    word_pairs,
    write_pairs,
    write_policy,
    write_reward_model,
)

Inputs = dict[str, Path | list[Path]]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    base = write_policy(tmp_path / "base")
    return {"policy": base, "reference": base, "data": write_pairs(tmp_path / "easy.parquet", 22)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder).state_dict()


def train(config: DPOStage, inputs: Inputs, output: Path) -> tuple[dict[str, object], RecordingReporter]:
    """The summary, and what was reported."""
    reporter = RecordingReporter()
    train_dpo(task_of(config, output, inputs), reporter)
    return json.loads((output / "summary.json").read_text()), reporter


def test_training_starts_at_log_two_and_learns_the_preference(inputs: Inputs, tmp_path: Path) -> None:
    config = DPOStage(learning_rate=4e-3, epochs=4, batch_pairs=8)
    summary, reporter = train(config, inputs, tmp_path / "dpo")
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 12) for k in range(1, 13)]
    assert set(untimed(reporter.steps[0][2])) == {
        "loss",
        "learning_rate",
        "grad_norm",
        "accuracy",
        "gap",
        "reward_chosen",
        "reward_rejected",
        "logprobs_chosen",
        "logprobs_rejected",
    }
    assert summary["loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    assert summary["loss_last"] < 0.5
    assert summary["gap_last"] > 0.5
    assert (summary["pairs"], summary["steps"], summary["encoding"]["pairs"]) == (22, 12, 22)
    assert summary["reference_sha256"] == weights_digest(tmp_path / "base")
    assert reporter.checkpoints == [0], "once the reference is done"
    assert sorted(path.name for path in (tmp_path / "dpo").iterdir()) == ["model", "summary.json"]


def test_the_reference_stays_what_it_was_where_it_is_another_model(inputs: Inputs, tmp_path: Path) -> None:
    other = write_policy(tmp_path / "other", seed=3)
    summary, reporter = train(DPOStage(max_steps=1), inputs | {"reference": other}, tmp_path / "dpo")
    assert abs(reporter.steps[0][2]["loss"] - math.log(2)) > 1e-2
    assert summary["reference_sha256"] == weights_digest(other)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "ipo", "beta": 0.5},
        {"loss": "hinge"},
        {"loss": "robust", "flip_rate": 0.1},
        {"loss": "cdpo", "flip_rate": 0.1},
        {"length_normalised": True, "beta": 2.0},
        {"sft_coefficient": 0.1},
    ],
)
def test_every_loss_learns_the_preference(inputs: Inputs, tmp_path: Path, options: dict[str, object]) -> None:
    base = {"learning_rate": 4e-3, "epochs": 3, "batch_pairs": 8}
    summary, _ = train(DPOStage.model_validate(base | options), inputs, tmp_path / "dpo")
    assert summary["loss_last"] < 0.9 * summary["loss_first"]
    assert summary["accuracy_last"] > 0.8


def test_a_learning_rate_of_zero_leaves_weights_and_settings_alone(inputs: Inputs, tmp_path: Path) -> None:
    train(DPOStage(learning_rate=0.0, max_steps=1), inputs, tmp_path / "dpo")
    before = weights(tmp_path / "base")
    for name, weight in weights(tmp_path / "dpo" / "model").items():
        assert torch.equal(before[name], weight), name
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        saved = json.loads((tmp_path / "dpo" / "model" / name).read_text())
        assert saved == json.loads((tmp_path / "base" / name).read_text()), name


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_adapters_go_on_from_the_sft_s_and_start_at_log_two(
    inputs: Inputs, tmp_path: Path, engine: str
) -> None:
    lora, base = LoRAConfig(rank=4, alpha=8), tmp_path / "base"
    sft = SFTStage(learning_rate=1e-2, batch_pairs=8, lora=lora)
    sft_inputs = {"policy": base, "base": base, "data": inputs["data"]}
    train_sft(task_of(sft, tmp_path / "sft", sft_inputs), RecordingReporter())
    start = tmp_path / "sft" / "model"
    config = DPOStage(engine=engine, learning_rate=5e-3, epochs=3, batch_pairs=8, lora=lora)  # type: ignore[arg-type]
    both = inputs | {"policy": start, "reference": start, "base": base}
    summary, reporter = train(config, both, tmp_path / "dpo")
    assert reporter.steps[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["loss_last"] < 0.65
    origin = json.loads((tmp_path / "dpo" / "model" / ADAPTER / "origin.json").read_text())
    assert origin["base_sha256"] == weights_digest(base)
    # Over the base as reference, the same policy starts elsewhere.
    _, reporter = train(
        config.model_copy(update={"max_steps": 1}), both | {"reference": base}, tmp_path / "b"
    )
    assert abs(reporter.steps[0][2]["loss"] - math.log(2)) > 1e-4


def banded(path: Path, gaps: list[float]) -> Path:
    """A file of 24 pairs whose gaps are these, again and again."""
    write_rows(path, [replace(p, gap=gaps[row % len(gaps)]) for row, p in enumerate(word_pairs(24))])
    return path


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_curriculum_trains_from_easy_to_hard_each_pass_against_the_one_before(
    inputs: Inputs, tmp_path: Path, engine: str
) -> None:
    config = DPOStage(
        engine=engine,  # type: ignore[arg-type]
        learning_rate=1e-3,
        epochs=2,
        batch_pairs=4,
        max_steps=10,
        curriculum=[2.0, 1.5, 1.0],
    )
    data = banded(tmp_path / "banded.parquet", [3.0, 1.0, 0.5])
    summary, reporter = train(config, inputs | {"data": data}, tmp_path / "dpo")
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 10) for k in range(1, 11)]
    assert reporter.checkpoints == [0, 4, 8]
    assert len(reporter.warnings) == 1
    assert "from 1.5 on and below 2" in reporter.warnings[0]
    for start, end in ((0, 3), (4, 7), (8, 9)):
        metrics = reporter.steps[start][2]
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5), "its reference is the policy"
        assert metrics["learning_rate"] == pytest.approx(1e-3)
        if end - start > 1:  # each row was seen twice; two single steps are on different rows
            assert reporter.steps[end][2]["loss"] < metrics["loss"] - 1e-3
    listed = [(p["gap_at_least"], p["gap_below"], p["pairs"], p["steps"]) for p in summary["passes"]]
    assert listed == [(2.0, None, 8, 4), (1.0, 1.5, 8, 4), (None, 1.0, 8, 2)]
    assert [p["loss_last"] for p in summary["passes"]] == [reporter.steps[k][2]["loss"] for k in (3, 7, 9)]


def test_a_pass_of_the_curriculum_is_a_training_on_its_band(inputs: Inputs, tmp_path: Path) -> None:
    # Two passes in one stage, against two stages of which the second starts from the first.
    gaps, config = [3.0, 1.0], DPOStage(learning_rate=1e-3, batch_pairs=4)
    data = banded(tmp_path / "banded.parquet", gaps)
    both = config.model_copy(update={"curriculum": [2.0]})
    train(both, inputs | {"data": data}, tmp_path / "both")
    model = tmp_path / "base"
    for gap in gaps:
        rows = [replace(p, gap=gap) for row, p in enumerate(word_pairs(24)) if gaps[row % 2] == gap]
        write_rows(tmp_path / f"{gap}.parquet", rows)
        own = {"policy": model, "reference": model, "data": tmp_path / f"{gap}.parquet"}
        train(config, own, tmp_path / str(gap))
        model = tmp_path / str(gap) / "model"
    apart = weights(model)
    for name, weight in weights(tmp_path / "both" / "model").items():
        assert torch.equal(apart[name], weight), name


def test_a_curriculum_without_gaps_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InvalidScores, match="pair 0 has none"):
        train(DPOStage(curriculum=[1.0]), inputs, tmp_path / "dpo")


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_one_pair_is_refused_and_two_are_enough(inputs: Inputs, tmp_path: Path, engine: str) -> None:
    config = DPOStage(engine=engine, epochs=2)  # type: ignore[arg-type]
    with pytest.raises(TooFewRows, match="single row"):
        train(config, inputs | {"data": write_pairs(tmp_path / "one.parquet", 1)}, tmp_path / "one")
    summary, _ = train(config, inputs | {"data": write_pairs(tmp_path / "two.parquet", 2)}, tmp_path / "two")
    assert (summary["pairs"], summary["steps"]) == (2, 2)


def test_no_easy_pairs_is_an_empty_split(inputs: Inputs, tmp_path: Path) -> None:
    write_rows(tmp_path / "none.parquet", [])
    with pytest.raises(EmptySplit, match="another threshold"):
        train(DPOStage(), inputs | {"data": tmp_path / "none.parquet"}, tmp_path / "dpo")


def test_a_loss_that_is_not_finite_names_its_step_and_rows(inputs: Inputs, tmp_path: Path) -> None:
    broken = load_policy(tmp_path / "base")
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    broken.save_pretrained(tmp_path / "base")
    sound = inputs | {"reference": write_policy(tmp_path / "sound")}
    with pytest.raises(TrainingDiverged, match="at step 1, on the rows") as caught:
        train(DPOStage(batch_pairs=4), sound, tmp_path / "dpo")
    assert caught.value.facts["step"] == 1
    assert len(caught.value.facts["rows"]) == 4
    assert not list((tmp_path / "dpo").iterdir())
    with pytest.raises(UnusableModel, match="reference's log-probabilities are not finite"):
        train(DPOStage(batch_pairs=4), inputs, tmp_path / "against itself")


def test_a_later_pass_that_diverges_names_the_stage_s_step(inputs: Inputs, tmp_path: Path) -> None:
    # A token that only the second pass's pair holds has no finite embedding.
    broken, token = (
        load_policy(tmp_path / "base"),
        load_tokenizer(tmp_path / "base").convert_tokens_to_ids("z"),
    )
    with torch.no_grad():
        broken.get_input_embeddings().weight[token] = float("nan")
    broken.save_pretrained(tmp_path / "base")
    rows = [replace(pair, gap=3.0) for pair in word_pairs(8)]
    write_rows(tmp_path / "odd.parquet", [*rows, replace(rows[0], id="odd", chosen="zz", gap=1.0)])
    config = DPOStage(batch_pairs=4, curriculum=[2.0])
    with pytest.raises(TrainingDiverged, match=r"at step 3, on the rows odd\. Before it: loss 0") as caught:
        train(config, inputs | {"data": tmp_path / "odd.parquet"}, tmp_path / "dpo")
    assert (caught.value.facts["step"], caught.value.facts["rows"]) == (3, ["odd"])


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_is_no_policy(inputs: Inputs, tmp_path: Path, tied: bool) -> None:
    reward_model = write_reward_model(tmp_path / "rm", tmp_path / "base")
    if tied:
        config = tiny_llama(300).config
        config.tie_word_embeddings, config.num_labels = True, 1
        LlamaForSequenceClassification(config).save_pretrained(reward_model)
    reporter = RecordingReporter()
    with pytest.raises(UnusableModel, match="this is a reward model"):
        train_dpo(task_of(DPOStage(), tmp_path / "dpo", inputs | {"policy": reward_model}), reporter)
    assert not reporter.checkpoints
