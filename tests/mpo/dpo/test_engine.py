from pathlib import Path

import pytest

from mpo.config import DPOStage
from mpo.dpo.engine import dpo_trainer
from mpo.dpo.loss import dpo_loss
from mpo.dpo.reference import pair_logprobs
from mpo.policies import load_policy
from mpo.tokenization import EncodedPair
from mpo.trl_engine import padding_tokenizer
from tests.mpo.tiny import EOS, task_of, write_policy

PAIRS = [
    EncodedPair("0", [1, 9, 12], [7, 30, EOS], [8, EOS], True, True),
    EncodedPair("1", [1, 4], [5, 6, 8, 9, 10, EOS], [11, 12, 13, 14], True, False),
    EncodedPair("2", [1, 20, 21, 22, 23], [9, EOS], [31, 0], True, False),  # cut at the padding id
]


def test_trls_loss_on_our_token_ids_and_reference_equals_ours(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "base", seed=0)
    policy = load_policy(folder)
    reference = pair_logprobs(load_policy(write_policy(tmp_path / "other", seed=1)), PAIRS, pad_id=0)
    own = pair_logprobs(policy, PAIRS, pad_id=0)
    task = task_of(DPOStage(beta=0.3), tmp_path / "out", {})
    trainer = dpo_trainer(policy, PAIRS, reference, padding_tokenizer(folder, 0), task)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(PAIRS))])
    theirs = trainer.compute_loss(trainer.model, batch)
    ours = dpo_loss(own, reference, beta=0.3)
    assert abs(ours.item() - 0.6931) > 0.02, "policy and reference too alike to tell losses apart"
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)


def test_the_trainer_takes_ids_as_they_are(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "base")
    policy = load_policy(folder)
    reference = pair_logprobs(policy, PAIRS, pad_id=0)
    task = task_of(DPOStage(), tmp_path / "out", {})
    trainer = dpo_trainer(policy, PAIRS, reference, padding_tokenizer(folder, 0), task)
    for row, pair in zip(trainer.train_dataset, PAIRS, strict=True):
        kept = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        assert kept == (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    assert trainer.ref_model is None
    assert trainer.data_collator.max_length is None
    assert {trainer.args.bf16, trainer.args.fp16, trainer.args.gradient_checkpointing} == {False}
