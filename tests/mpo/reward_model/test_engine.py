from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mpo.config import RewardModelStage
from mpo.policies import load_reward_model
from mpo.reward_model.engine import PairRewardTrainer, reward_trainer
from mpo.reward_model.loss import bradley_terry_loss
from mpo.reward_model.score import score_encoded
from mpo.tokenization import EncodedPair
from mpo.trl_engine import padding_tokenizer
from tests.mpo.tiny import EOS, task_of, write_policy, write_reward_model

PAIRS = [
    EncodedPair("0", [1, 9, 12], [7, 30, EOS], [8, EOS], True, True),
    EncodedPair("1", [1, 4], [5, 6, 8, 9, 10, EOS], [11, 12, 13, 14], True, False),
    EncodedPair("2", [1, 20, 21, 22, 23], [9, EOS], [31, 0], True, False),  # cut at the padding id
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_reward_model(tmp_path / "rm", write_policy(tmp_path / "base"))


def trainer_of(folder: Path, tmp_path: Path) -> tuple[PreTrainedModel, PairRewardTrainer]:
    model = load_reward_model(folder)
    task = task_of(RewardModelStage(), tmp_path / "out", {})
    padding = padding_tokenizer(folder, model.config.pad_token_id)
    return model, reward_trainer(model, PAIRS, padding, task)


def test_trls_loss_on_our_token_ids_equals_ours(folder: Path, tmp_path: Path) -> None:
    model, trainer = trainer_of(folder, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(PAIRS))])
    theirs = trainer.compute_loss(model, batch)
    ours = bradley_terry_loss(*score_encoded(model, PAIRS).unbind(-1))
    assert abs(ours.item() - 0.6931) > 0.01, "rewards too alike to tell losses apart"
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-6)


def test_the_trainer_drops_no_pair_and_leaves_dropout_and_half_precision_off(
    folder: Path, tmp_path: Path
) -> None:
    _, trainer = trainer_of(folder, tmp_path)
    assert [row["chosen_ids"] for row in trainer.train_dataset] == [
        p.prompt_ids + p.chosen_ids for p in PAIRS
    ]
    assert {trainer.args.bf16, trainer.args.fp16, trainer.args.gradient_checkpointing} == {False}
    assert trainer.args.report_to == []
    assert trainer.model.dtype == torch.float32
