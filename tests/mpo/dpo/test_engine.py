from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from mpo.config import DPOStage
from mpo.dpo.engine import dpo_trainer
from mpo.dpo.objective import PairObjective
from mpo.dpo.reference import pair_logprobs
from mpo.dpo.train import train_dpo
from mpo.errors import StageInterrupted
from mpo.policies import load_policy
from mpo.tokenization import EncodedPair
from mpo.training_config import LoRAConfig
from mpo.trl_engine import padding_tokenizer
from tests.mpo.tiny import EOS, RecordingReporter, task_of, untimed, write_pairs, write_policy

PAIRS = [
    EncodedPair("0", [1, 9, 12], [7, 30, EOS], [8, EOS], True, True),
    EncodedPair("1", [1, 4], [5, 6, 8, 9, 10, EOS], [11, 12, 13, 14], True, False),
    EncodedPair("2", [1, 20, 21, 22, 23], [9, EOS], [31, 0], True, False),  # cut at the padding id
]
Folders = Mapping[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("engine")
    base = write_policy(folder / "base")
    other = write_policy(folder / "other", seed=1)
    return {"policy": base, "reference": other, "data": write_pairs(folder / "easy.parquet", 22)}


@pytest.mark.parametrize(
    ("loss", "flip_rate"), [("sigmoid", 0), ("ipo", 0), ("hinge", 0), ("robust", 0.2), ("cdpo", 0.2)]
)
def test_trls_loss_on_our_token_ids_and_reference_equals_ours(
    folders: Folders, tmp_path: Path, loss: str, flip_rate: float
) -> None:
    policy = load_policy(folders["policy"])
    reference = pair_logprobs(load_policy(folders["reference"]), PAIRS, pad_id=0)
    config = DPOStage.model_validate({"beta": 0.3, "loss": loss, "flip_rate": flip_rate})
    objective = PairObjective(PAIRS, reference, config, 0)
    summed, metrics = objective.losses(policy, range(len(PAIRS)))
    ours = summed.item() / len(PAIRS)
    same = PairObjective(PAIRS, pair_logprobs(policy, PAIRS, 0), config, 0)
    unmoved = same.losses(policy, range(len(PAIRS)))[0].item() / len(PAIRS)
    assert abs(ours - unmoved) > 1e-3, "policy and reference too alike to tell losses apart"
    tokenizer = padding_tokenizer(folders["policy"], 0)
    trainer = dpo_trainer(policy, PAIRS, reference, tokenizer, task_of(config, tmp_path / "out", {}))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(PAIRS))])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(ours, abs=1e-5)
    gap = trainer._metrics["train" if policy.training else "eval"]["rewards/margins"][-1]
    assert metrics["gap"].item() / len(PAIRS) == pytest.approx(gap, abs=1e-5)


def test_the_trainer_takes_ids_as_they_are(folders: Folders, tmp_path: Path) -> None:
    policy = load_policy(folders["policy"])
    reference = pair_logprobs(policy, PAIRS, pad_id=0)
    tokenizer = padding_tokenizer(folders["policy"], 0)
    trainer = dpo_trainer(policy, PAIRS, reference, tokenizer, task_of(DPOStage(), tmp_path / "out", {}))
    for row, pair in zip(trainer.train_dataset, PAIRS, strict=True):
        kept = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        assert kept == (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    assert trainer.ref_model is None
    assert trainer.data_collator.max_length is None
    assert {trainer.args.bf16, trainer.args.fp16, trainer.args.gradient_checkpointing} == {False}


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)])
def test_both_engines_take_the_same_steps(folders: Folders, tmp_path: Path, lora: LoRAConfig | None) -> None:
    inputs = {**folders, "base": folders["policy"]}
    reporters = {}
    for engine in ("native", "trl"):
        config = DPOStage(engine=engine, learning_rate=1e-3, batch_pairs=8, max_steps=3, lora=lora)  # type: ignore[arg-type]
        reporters[engine] = RecordingReporter()
        train_dpo(task_of(config, tmp_path / engine, inputs), reporters[engine])
    for ours, theirs in zip(reporters["native"].steps, reporters["trl"].steps, strict=True):
        assert ours[:2] == theirs[:2]
        assert untimed(ours[2]) == pytest.approx(untimed(theirs[2]), rel=1e-4, abs=1e-5)
    ours, theirs = (load_policy(tmp_path / engine / "model").state_dict() for engine in ("native", "trl"))
    start = load_policy(folders["policy"]).state_dict()
    moved = 0.0
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=0)
        moved = max(moved, (weight - start[name]).abs().max().item())
    assert moved > 1e-4


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)])
def test_trls_training_resumes_bit_for_bit(folders: Folders, tmp_path: Path, lora: LoRAConfig | None) -> None:
    inputs = {**folders, "base": folders["policy"]}
    config = DPOStage(engine="trl", learning_rate=1e-3, epochs=2, batch_pairs=8, lora=lora)
    train_dpo(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=4)
    with pytest.raises(StageInterrupted):
        train_dpo(task_of(config, tmp_path / "first", inputs), first)
    assert first.checkpoints == [0, 4]
    rest = RecordingReporter()
    train_dpo(task_of(config, tmp_path / "rest", inputs, resume=tmp_path / "kept"), rest)
    assert [step for step, _, _ in rest.steps] == [5, 6]
    assert rest.checkpoints == [], "the reference is asked once"
    for name in ("model/model.safetensors", "summary.json"):
        assert (tmp_path / "rest" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
