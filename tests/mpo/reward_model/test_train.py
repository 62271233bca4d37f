import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from mpo.adapters import ADAPTER, HEAD_WEIGHT, AdaptedBase, read_adapter, weights_digest
from mpo.checkpoints import load_state
from mpo.config import RewardModelStage, SFTStage
from mpo.errors import StageInterrupted, TooFewPrompts, TooFewRows, UnusableModel
from mpo.hold_out import assign_folds
from mpo.policies import load_policy, load_reward_model, new_reward_model, score_head
from mpo.records import PreferencePair, write_rows
from mpo.reward_model.score import reward_offset, score_encoded, score_responses
from mpo.reward_model.train import pairs_at, train_reward_model, training_rows
from mpo.sft.train import train_sft
from mpo.tokenization import encode_pairs, load_tokenizer
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import (
    EOS,
    WORDS,
    RecordingReporter,
    task_of,
    untimed,
    word_pairs,
    write_policy,
    write_reward_model,
)

Summary = dict[str, Any]
Inputs = dict[str, Path | list[Path]]
LORA = LoRAConfig(rank=4, alpha=8)
# Rows of 5 make the passes end unevenly.
UNEVEN = RewardModelStage(learning_rate=1e-3, epochs=2, batch_pairs=7)
TEACHING = [
    replace(pair, group=row // 4, margin=0.1 * (row % 3), weight=1.0 + row % 2)
    for row, pair in enumerate(word_pairs(24))
]
"""Pairs with margins and weights."""


def trained_on(pairs: list[PreferencePair], inputs: Inputs, output: Path, **options: object) -> Summary:
    """The summary of a reward model trained on these pairs."""
    write_rows(output.with_suffix(".parquet"), pairs)
    task = task_of(RewardModelStage(**options), output, inputs | {"data": output.with_suffix(".parquet")})
    train_reward_model(task, RecordingReporter())
    return json.loads((output / "summary.json").read_text())


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    pairs = [replace(pair, group=row // 4) for row, pair in enumerate(word_pairs(32))]
    write_rows(tmp_path / "train.parquet", pairs[:24])
    write_rows(tmp_path / "eval.parquet", pairs[24:])
    return {"backbone": write_policy(tmp_path / "base"), "data": tmp_path / "train.parquet"}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_reward_model(output / "model").state_dict()


def test_training_learns_the_preference_and_reports_every_step(inputs: Inputs, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    config = RewardModelStage(learning_rate=5e-3, epochs=6, batch_pairs=8)
    task = task_of(config, tmp_path / "rm", inputs | {"eval": tmp_path / "eval.parquet"})
    train_reward_model(task, reporter)
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 18) for k in range(1, 19)]
    assert [m["learning_rate"] for _, _, m in reporter.steps] == pytest.approx(
        [5e-3 * (1 - k / 18) for k in range(18)]
    )
    assert untimed(reporter.steps[0][2]).keys() == {
        "loss",
        "learning_rate",
        "grad_norm",
        "accuracy",
        "gap",
        "reward_mean",
    }
    summary = json.loads((tmp_path / "rm" / "summary.json").read_text())
    assert summary["loss_first"] == pytest.approx(0.69, abs=0.2)
    assert summary["loss_last"] < 0.5 * summary["loss_first"]
    assert summary["loss_last"] == reporter.steps[-1][2]["loss"]
    assert (summary["pairs"], summary["eval_pairs"], summary["steps"]) == (24, 8, 18)
    assert 0 <= summary["accuracy_ci95"][0] <= summary["accuracy"] <= summary["accuracy_ci95"][1] <= 1
    assert 0 <= summary["ece"] <= 1
    assert sorted(path.name for path in (tmp_path / "rm").iterdir()) == ["model", "summary.json"]


def test_training_responses_score_zero_on_average(inputs: Inputs, tmp_path: Path) -> None:
    train_reward_model(task_of(RewardModelStage(max_steps=2), tmp_path / "rm", inputs), RecordingReporter())
    model = load_reward_model(tmp_path / "rm" / "model")
    pairs, _ = encode_pairs(
        word_pairs(24), load_tokenizer(tmp_path / "base"), max_prompt_tokens=None, max_response_tokens=None
    )
    assert reward_offset(model) != 0
    assert score_encoded(model, pairs).mean().item() == pytest.approx(0, abs=1e-5)


def test_a_folds_model_sees_no_pair_of_its_fold(inputs: Inputs, tmp_path: Path) -> None:
    folds = assign_folds([row // 4 for row in range(24)], 3)
    data = tmp_path / "train.parquet"
    seen = list(pairs_at(data, training_rows(data, RewardModelStage(fold=2, folds=3))))
    assert [pair.id for pair in seen] == [str(row) for row, fold in enumerate(folds) if fold != 2]
    assert {pair.group for pair in seen}.isdisjoint({row // 4 for row, fold in enumerate(folds) if fold == 2})


def resumed_at(boundary: int, config: RewardModelStage, inputs: Inputs, folder: Path) -> Path:
    """The output of a training that was stopped after `boundary` steps, and then went on."""
    first = RecordingReporter(kept=folder / "kept", stop_after=boundary)
    with pytest.raises(StageInterrupted):
        train_reward_model(task_of(config, folder / "first", inputs), first)
    assert first.checkpoints == [boundary]
    assert not list((folder / "first").iterdir())
    rest, output = RecordingReporter(), folder / "rest"
    train_reward_model(task_of(config, output, inputs, resume=folder / "kept"), rest)
    assert rest.steps[0][0] == boundary + 1
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, Path]:
    """What a training needs, and the output of one that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder / "train.parquet", TEACHING)
    inputs: Inputs = {"backbone": write_policy(folder / "base"), "data": folder / "train.parquet"}
    train_reward_model(task_of(UNEVEN, folder / "rm", inputs), RecordingReporter())
    return inputs, folder / "rm"


@pytest.mark.parametrize("boundary", range(1, 8))
def test_resumed_equals_uninterrupted_bit_for_bit_at_every_boundary(
    whole: tuple[Inputs, Path], tmp_path: Path, boundary: int
) -> None:
    inputs, uninterrupted = whole
    output = resumed_at(boundary, UNEVEN, inputs, tmp_path)
    for name in ("model/model.safetensors", "model/config.json", "summary.json"):
        assert (output / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_resumed_adapters_equal_uninterrupted_ones_bit_for_bit(
    whole: tuple[Inputs, Path], tmp_path: Path
) -> None:
    inputs, config = whole[0], UNEVEN.model_copy(update={"lora": LORA})
    train_reward_model(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    output = resumed_at(5, config, inputs, tmp_path)
    kept = load_state(tmp_path / "kept" / "state.safetensors")["parameters"]
    assert "score.weight" in kept
    assert all("lora" in name for name in kept if name != "score.weight"), "no frozen weight"
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/origin.json"):
        uninterrupted = (tmp_path / "whole" / "model" / name).read_bytes()
        assert (output / "model" / name).read_bytes() == uninterrupted, name


def test_the_adapter_loads_with_peft_over_the_base_and_scores_as_the_folder_does(
    whole: tuple[Inputs, Path], tmp_path: Path
) -> None:
    inputs, config = whole[0], RewardModelStage(learning_rate=1e-2, lora=LORA)
    train_reward_model(task_of(config, tmp_path / "rm", inputs), RecordingReporter())
    folder = tmp_path / "rm" / "model"
    # peft takes over the caller's head: transformers gives it a random one, and says so.
    base = AutoModelForSequenceClassification.from_pretrained(inputs["backbone"], num_labels=1)
    adapted = PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    offset = json.loads((folder / ADAPTER / "origin.json").read_text())["reward_offset"]
    merged = load_reward_model(folder)
    assert offset == reward_offset(merged) != 0
    prompts, responses = [[1, 5], [1, 5, 9, 8, 7], [1, 6, 7]], [[9, 2], [4], [8, 2]]
    expected = score_responses(merged, prompts, responses)
    for prompt, response, reward in zip(prompts, responses, expected.tolist(), strict=True):
        logits = adapted(input_ids=torch.tensor([prompt + response])).logits
        assert logits.item() - offset == pytest.approx(reward, abs=1e-5)
    assert expected.std() > 0.05
    start = load_policy(inputs["backbone"]).base_model.state_dict()
    moved = merged.base_model.state_dict()
    assert any(not torch.equal(weight, start[name]) for name, weight in moved.items())
    assert torch.equal(moved["embed_tokens.weight"], start["embed_tokens.weight"])


def test_a_kept_adapter_and_head_run_over_the_base_as_the_folder_does(
    whole: tuple[Inputs, Path], tmp_path: Path
) -> None:
    backbone = Path(str(whole[0]["backbone"]))
    config = RewardModelStage(learning_rate=1e-2, lora=LORA)
    train_reward_model(task_of(config, tmp_path / "rm", whole[0]), RecordingReporter())
    adapter, merged = read_adapter(tmp_path / "rm" / "model"), load_reward_model(tmp_path / "rm" / "model")
    assert adapter is not None
    base = AdaptedBase(new_reward_model(backbone, seed=9), weights_digest(backbone))
    base.add_frozen("rewards", adapter)
    with torch.no_grad():
        score_head(base.model).weight.copy_(adapter.weights[HEAD_WEIGHT])
    found = score_responses(base.model, [[1, 5], [1, 6, 7]], [[9, 2], [8, 2]]) - reward_offset(merged)
    expected = score_responses(merged, [[1, 5], [1, 6, 7]], [[9, 2], [8, 2]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_backbone_that_is_an_adapter_goes_on_over_the_same_base(
    whole: tuple[Inputs, Path], tmp_path: Path
) -> None:
    base, data = whole[0]["backbone"], whole[0]["data"]
    sft_inputs: Inputs = {"policy": base, "base": base, "data": data}
    sft = SFTStage(learning_rate=1e-2, batch_pairs=8, lora=LORA)
    train_sft(task_of(sft, tmp_path / "sft", sft_inputs), RecordingReporter())
    start = tmp_path / "sft" / "model"
    inputs: Inputs = {"backbone": start, "base": base, "data": data}
    config = RewardModelStage(learning_rate=0.0, max_steps=1, backbone="sft", lora=LORA)
    train_reward_model(task_of(config, tmp_path / "rm", inputs), RecordingReporter())
    before, after = read_adapter(start), read_adapter(tmp_path / "rm" / "model")
    assert before is not None
    assert after is not None
    assert after.base_sha256 == before.base_sha256 == weights_digest(Path(str(base)))
    assert after.low_rank.keys() == before.weights.keys()
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.weights.items())
    assert (after.weights.keys() - before.weights.keys()) == {HEAD_WEIGHT}


def test_the_seed_decides_the_result(inputs: Inputs, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        task = task_of(RewardModelStage(max_steps=2), tmp_path / name, inputs, seed=seed)
        train_reward_model(task, RecordingReporter())
    heads = [weights(tmp_path / name)["score.weight"] for name in "abc"]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_folds_model_that_starts_from_sft_is_warned_about(inputs: Inputs, tmp_path: Path) -> None:
    warned = {}
    for backbone in ("model", "sft"):
        for fold in (None, 1):
            reporter = RecordingReporter()
            config = RewardModelStage(backbone=backbone, fold=fold, folds=fold and 2, max_steps=1)
            task = task_of(config, tmp_path / f"{backbone}{fold}", inputs)
            train_reward_model(task, reporter)
            warned[backbone, fold] = reporter.warnings
    assert [key for key, warnings in warned.items() if warnings] == [("sft", 1)]
    assert "has seen every chosen response" in warned["sft", 1][0]


def test_pairs_without_a_group_are_dealt_to_folds_by_their_prompts(inputs: Inputs, tmp_path: Path) -> None:
    pairs = [replace(pair, prompt=f"{row // 4}: ") for row, pair in enumerate(word_pairs(24))]
    write_rows(tmp_path / "ungrouped.parquet", pairs)
    data = tmp_path / "ungrouped.parquet"
    seen = list(pairs_at(data, training_rows(data, RewardModelStage(fold=1, folds=2))))
    folds = assign_folds([row // 4 for row in range(24)], 2)
    assert [pair.id for pair in seen] == [str(row) for row, fold in enumerate(folds) if fold != 1]


def test_one_pair_is_refused_and_two_are_enough(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(TooFewRows, match="single row"):
        trained_on(word_pairs(1), inputs, tmp_path / "one")
    summary = trained_on(word_pairs(2), inputs, tmp_path / "two", learning_rate=1e-3, epochs=3)
    assert (summary["pairs"], summary["steps"]) == (2, 3)
    assert summary["loss_last"] < summary["loss_first"]


def test_no_pair_is_an_error(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(TooFewPrompts, match="no pairs"):
        trained_on([], inputs, tmp_path / "none")


def test_identical_responses_teach_nothing_and_count_half(inputs: Inputs, tmp_path: Path) -> None:
    pairs = [replace(pair, rejected=pair.chosen) for pair in word_pairs(8)]
    with_eval = inputs | {"eval": tmp_path / "same.parquet"}
    write_rows(tmp_path / "same.parquet", pairs)
    summary = trained_on(pairs, with_eval, tmp_path / "same_rm", learning_rate=1e-3)
    assert summary["loss_first"] == pytest.approx(math.log(2), abs=1e-6)
    assert (summary["accuracy"], summary["length_baseline"], summary["gap_std"]) == (0.5, 0.5, 0.0)
    before = load_policy(tmp_path / "base").base_model.state_dict()
    for name, weight in load_reward_model(tmp_path / "same_rm" / "model").base_model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_weights_that_are_all_zero_leave_the_backbone_as_it_was(inputs: Inputs, tmp_path: Path) -> None:
    pairs = [replace(pair, weight=0.0) for pair in word_pairs(8)]
    summary = trained_on(pairs, inputs, tmp_path / "zero", learning_rate=1e-2)
    assert summary["loss_last"] == 0
    before = load_policy(tmp_path / "base").base_model.state_dict()
    for name, weight in load_reward_model(tmp_path / "zero" / "model").base_model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_reward_model_is_no_backbone(inputs: Inputs, tmp_path: Path) -> None:
    write_reward_model(tmp_path / "rm", tmp_path / "base")
    with pytest.raises(UnusableModel, match="a policy is needed here"):
        trained_on(word_pairs(4), inputs | {"backbone": tmp_path / "rm"}, tmp_path / "out")


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_tokenizer_without_a_padding_token_will_do(inputs: Inputs, tmp_path: Path, engine: str) -> None:
    without_token(tmp_path / "base", "pad_token")
    assert load_tokenizer(tmp_path / "base").pad_token is None
    summary = trained_on(word_pairs(8), inputs, tmp_path / "rm", engine=engine, max_steps=1)
    assert summary["steps"] == 1
    pad_id = load_reward_model(tmp_path / "rm" / "model").config.pad_token_id
    assert pad_id not in (None, EOS)


def test_a_tokenizer_without_an_end_is_an_error(inputs: Inputs, tmp_path: Path) -> None:
    without_token(tmp_path / "base", "eos_token")
    with pytest.raises(UnusableModel, match="no EOS token"):
        trained_on(word_pairs(4), inputs, tmp_path / "rm")


def without_token(folder: Path, name: str) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop(name)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_held_out_numbers_are_those_of_the_saved_model_counted_by_hand(
    inputs: Inputs, tmp_path: Path
) -> None:
    task = task_of(
        RewardModelStage(max_steps=2), tmp_path / "rm", inputs | {"eval": tmp_path / "eval.parquet"}
    )
    train_reward_model(task, RecordingReporter())
    summary = json.loads((tmp_path / "rm" / "summary.json").read_text())
    pairs, _ = encode_pairs(
        word_pairs(32)[24:],
        load_tokenizer(tmp_path / "base"),
        max_prompt_tokens=None,
        max_response_tokens=None,
    )
    rewards = score_encoded(load_reward_model(tmp_path / "rm" / "model"), pairs)
    gaps = (rewards[:, 0] - rewards[:, 1]).tolist()
    longer = [len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs]
    assert summary["accuracy"] == sum(gap > 0 for gap in gaps) / 8
    assert summary["length_baseline"] == sum((more > 0) + (more == 0) / 2 for more in longer) / 8
    assert summary["gap_mean"] == pytest.approx(sum(gaps) / 8, abs=1e-6)
    assert sum(part["pairs"] for part in summary["reliability"]) == 8
    assert sum(part["pairs"] for part in summary["accuracy_by_length"]) == 8
    weighted = [part["accuracy"] * part["pairs"] / 8 for part in summary["accuracy_by_length"]]
    assert sum(weighted) == pytest.approx(summary["accuracy"])


def test_a_gold_reward_is_found_through_labels_of_which_a_tenth_are_wrong(
    inputs: Inputs, tmp_path: Path
) -> None:
    # Gold: how often a response says "red", linear in it; every tenth label of the training pairs is turned.
    draw = random.Random(0)
    words = [word for word in WORDS if word != "red"]

    def planted(row: int, flipped: bool) -> PreferencePair:
        counts = draw.sample(range(4), 2)
        texts = [" ".join(draw.sample(["red"] * n + draw.sample(words, 4 - n), 4)) for n in sorted(counts)]
        worse, better = texts[::-1] if flipped else texts
        return PreferencePair(str(row), f"{draw.choice(words)} {row}: ", better, worse)

    write_rows(tmp_path / "clean.parquet", [planted(row, False) for row in range(60)])
    summary = trained_on(
        [planted(row, row % 10 == 0) for row in range(200)],
        inputs | {"eval": tmp_path / "clean.parquet"},
        tmp_path / "planted",
        learning_rate=3e-3,
        epochs=2,
    )
    assert summary["accuracy"] > 0.9
    assert summary["accuracy_ci95"][0] > summary["length_baseline"]
