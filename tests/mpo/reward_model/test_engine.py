import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mpo.config import RewardModelStage
from mpo.errors import InvalidSpec, StageInterrupted, TrainingDiverged
from mpo.policies import load_reward_model
from mpo.records import write_rows
from mpo.reward_model.engine import PairRewardTrainer, reward_trainer
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.reward_model.train import train_reward_model
from mpo.tokenization import EncodedPair
from mpo.training_config import LoRAConfig
from mpo.trl_engine import padding_tokenizer
from tests.mpo.tiny import (
    EOS,
    PAD,
    RecordingReporter,
    task_of,
    untimed,
    word_pairs,
    write_policy,
    write_reward_model,
)

PAIRS = [
    EncodedPair("0", [1, 9, 12], [7, 30, EOS], [8, EOS], True, True),
    EncodedPair("1", [1, 4], [5, 6, 8, 9, 10, EOS], [11, 12, 13, 14], True, False),
    EncodedPair("2", [1, 20, 21, 22, 23], [9, EOS], [31, 0], True, False),  # cut at the padding id
]
ROWS = PairRows(PAIRS, [0.0, 0.7, -0.2], [1.0, 1.0, 1.0])
TRL = RewardModelStage(engine="trl", learning_rate=1e-3, batch_pairs=8)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reward model on it, and pairs with margins."""
    folder = tmp_path_factory.mktemp("engine")
    write_reward_model(folder / "rm", write_policy(folder / "base"))
    pairs = [replace(pair, group=row // 4, margin=0.2 * (row % 3)) for row, pair in enumerate(word_pairs(24))]
    write_rows(folder / "pairs.parquet", pairs)
    write_rows(folder / "weighted.parquet", [replace(pairs[0], weight=1.0), replace(pairs[1], weight=3.0)])
    return folder


def trainer_of(
    house: Path, output: Path, config: RewardModelStage, rows: PairRows = ROWS
) -> tuple[PreTrainedModel, PairRewardTrainer]:
    model = load_reward_model(house / "rm")
    with torch.no_grad():
        model.score.weight *= 0.05  # losses of which fp32 tells a millionth
    padding = padding_tokenizer(house / "rm", model.config.pad_token_id)
    return model, reward_trainer(model, rows, padding, task_of(config, output, {}))


def train(
    house: Path,
    output: Path,
    config: RewardModelStage,
    data: str = "pairs.parquet",
    base: str = "base",
    resume: Path | None = None,
    reporter: RecordingReporter | None = None,
) -> RecordingReporter:
    reporter = reporter or RecordingReporter()
    inputs = {"backbone": house / base, "data": house / data}
    train_reward_model(task_of(config, output, inputs, resume=resume), reporter)
    return reporter


@pytest.mark.parametrize(
    ("margins", "centring"), [([0.0] * 3, 0.0), (ROWS.margins, 0.0), ([0.0] * 3, 0.05), (ROWS.margins, 0.05)]
)
def test_our_loss_equals_trls_on_the_same_token_ids(
    house: Path, tmp_path: Path, margins: list[float], centring: float
) -> None:
    rows = replace(ROWS, margins=margins)
    model, trainer = trainer_of(house, tmp_path, RewardModelStage(engine="trl", centring=centring), rows)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(PAIRS))])
    theirs = trainer.compute_loss(model, batch)
    ours = PairRewards(rows, PAD, 0.0, centring).losses(model, [0, 1, 2])[0] / 3
    assert abs(ours.item() - 0.6931) > 0.01, "rewards too alike to tell losses apart"
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-6)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)])
def test_three_steps_of_either_engine_leave_the_same_weights_and_report_the_same(
    house: Path, tmp_path: Path, lora: LoRAConfig | None
) -> None:
    steps, weights = {}, {}
    for engine in ("native", "trl"):
        config = TRL.model_copy(update={"engine": engine, "centring": 0.05, "lora": lora})
        steps[engine] = train(house, tmp_path / engine, config).steps
        weights[engine] = load_reward_model(tmp_path / engine / "model").state_dict()
    for (*place, ours), (*their_place, theirs) in zip(steps["native"], steps["trl"], strict=True):
        assert place == their_place
        assert untimed(ours) == pytest.approx(untimed(theirs), abs=1e-5)
    assert len(steps["trl"]) == 3
    for name, weight in weights["native"].items():
        torch.testing.assert_close(weight, weights["trl"][name], atol=1e-5, rtol=0)
    start = load_file(house / "base" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    moved = weights["native"]["model.layers.0.mlp.up_proj.weight"] - start
    assert moved.abs().max() > 1e-4


def test_resumed_equals_uninterrupted_with_trl_too(house: Path, tmp_path: Path) -> None:
    config = TRL.model_copy(update={"lora": LoRAConfig(rank=4, alpha=8), "epochs": 2})
    train(house, tmp_path / "whole", config)
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=4)
    with pytest.raises(StageInterrupted):
        train(house, tmp_path / "first", config, reporter=first)
    rest = train(house, tmp_path / "rest", config, resume=tmp_path / "kept")
    assert [step for step, _, _ in rest.steps] == [5, 6]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        whole = (tmp_path / "whole" / "model" / name).read_bytes()
        assert (tmp_path / "rest" / "model" / name).read_bytes() == whole, name


def test_weights_are_refused_before_trl_trains(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    with pytest.raises(InvalidSpec, match=r"1 pairs have one other than 1 .*: 1\): use engine native"):
        train(house, tmp_path / "refused", TRL, "weighted.parquet", reporter=reporter)
    assert reporter.steps == []
    unweighted = TRL.model_copy(update={"weight": False})
    assert len(train(house, tmp_path / "taken", unweighted, "weighted.parquet").steps) == 1


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_loss_that_is_not_finite_names_step_rows_and_what_was_before(
    house: Path, tmp_path: Path, engine: str
) -> None:
    # A token that is in pair 13 alone is broken: steps without that pair are not.
    shutil.copytree(house / "base", tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    tokenizer = padding_tokenizer(house / "base", PAD)
    weights["model.embed_tokens.weight"][tokenizer("%")["input_ids"][-1]] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    pairs = word_pairs(24)
    pairs[13] = replace(pairs[13], prompt="green % ")
    write_rows(tmp_path / "pairs.parquet", pairs)
    config = TRL.model_copy(update={"engine": engine, "batch_pairs": 2})
    reporter = RecordingReporter()
    with pytest.raises(
        TrainingDiverged, match=r"not finite at step \d+, on the rows .*Before it: loss 0"
    ) as caught:
        train(tmp_path, tmp_path / "rm", config, reporter=reporter)
    facts = caught.value.facts
    assert facts["step"] == len(reporter.steps) + 1 > 1
    assert facts["last_metrics"] == untimed(reporter.steps[-1][2])
    assert "13" in facts["rows"]
    assert len(facts["rows"]) == 2
    assert not list((tmp_path / "rm").iterdir())


def test_the_trainer_drops_no_pair_and_leaves_dropout_and_half_precision_off(
    house: Path, tmp_path: Path
) -> None:
    _, trainer = trainer_of(house, tmp_path, RewardModelStage(engine="trl"))
    assert [row["chosen_ids"] for row in trainer.train_dataset] == [
        p.prompt_ids + p.chosen_ids for p in PAIRS
    ]
    assert {trainer.args.bf16, trainer.args.fp16, trainer.args.gradient_checkpointing} == {False}
    assert trainer.args.report_to == []
    assert trainer.model.dtype == torch.float32
