import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpo.adapters import TRAINED, open_policy, weights_digest
from mpo.config import DPOStage, SFTStage
from mpo.dpo.loss import PairLogprobs
from mpo.dpo.reference import check_reference, pair_logprobs, reference_model
from mpo.errors import StageInterrupted, UnusableModel
from mpo.policies import load_policy
from mpo.reporter import StageTask
from mpo.sft.train import train_sft
from mpo.tokenization import EncodedPair
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import RecordingReporter, task_of, tiny_llama, write_pairs, write_policy

LORA = LoRAConfig(rank=4, alpha=8)
PAIRS = [
    EncodedPair("0", [1, 9, 12], [7, 30, 2], [8, 2], True, True),
    EncodedPair("1", [1], [5, 6, 8, 9, 10, 2], [0], True, False),
]
Folders = Mapping[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A base, an SFT of it by adapters, and another model."""
    folder = tmp_path_factory.mktemp("reference")
    base, data = write_policy(folder / "base"), write_pairs(folder / "pairs.parquet", 16)
    config = SFTStage(learning_rate=1e-2, batch_pairs=8, lora=LORA)
    inputs = {"policy": base, "base": base, "data": data}
    train_sft(task_of(config, folder / "sft", inputs), RecordingReporter())
    return {
        "base": base,
        "sft": folder / "sft" / "model",
        "other": write_policy(folder / "other", seed=3),
    }


def lora_task(folders: Folders, tmp_path: Path, policy: str, reference: str) -> StageTask:
    inputs = {"policy": folders[policy], "reference": folders[reference], "base": folders["base"]}
    return task_of(DPOStage(lora=LORA), tmp_path, inputs)


def by_reference(task: StageTask) -> tuple[PairLogprobs, PairLogprobs]:
    """Log-probabilities by the reference, then by the policy."""
    opened = open_policy(task, "policy")
    digest = weights_digest(task.one("reference").path)
    with reference_model(task, opened, digest) as model:
        reference = pair_logprobs(model.eval(), PAIRS, 0)
    assert opened.base is not None
    assert opened.base.active == TRAINED
    assert all(f".{TRAINED}." in name for name, p in opened.model.named_parameters() if p.requires_grad)
    assert list(opened.base.wrapped().peft_config) == [TRAINED]
    return reference, pair_logprobs(opened.model.eval(), PAIRS, 0)


def assert_equal(left: PairLogprobs, right: PairLogprobs) -> None:
    assert torch.equal(left.chosen, right.chosen)
    assert torch.equal(left.rejected, right.rejected)


def test_logprobs_of_both_responses_in_order() -> None:
    model = tiny_llama(50)
    found = pair_logprobs(model, PAIRS, pad_id=0)
    for row, pair in enumerate(PAIRS):
        for logprobs, response in ((found.chosen, pair.chosen_ids), (found.rejected, pair.rejected_ids)):
            logits = model(input_ids=torch.tensor([pair.prompt_ids + response])).logits[0]
            first = len(pair.prompt_ids) - 1
            expected = sum(
                torch.log_softmax(logits[first + k], -1)[token].item() for k, token in enumerate(response)
            )
            assert logprobs[row].item() == pytest.approx(expected, abs=1e-4)


def test_a_reference_that_says_no_number_is_named_with_the_rows() -> None:
    model = tiny_llama(50)
    with torch.no_grad():
        model.get_input_embeddings().weight[30] = math.nan
    told = pair_logprobs(model, PAIRS, pad_id=0)
    with pytest.raises(UnusableModel, match=r"reference's log-probabilities .* on 1 of 2 pairs: first\. "):
        check_reference(told, ["first", "second"])


def test_an_adapter_over_the_policy_s_base_gives_the_policy_s_numbers_to_the_bit(
    folders: Folders, tmp_path: Path
) -> None:
    reference, policy = by_reference(lora_task(folders, tmp_path, "sft", "sft"))
    assert_equal(reference, policy)
    merged = pair_logprobs(load_policy(folders["sft"]), PAIRS, 0)
    torch.testing.assert_close(reference.chosen, merged.chosen, atol=1e-4, rtol=0)


def test_the_base_as_reference_is_the_base_without_adapters(folders: Folders, tmp_path: Path) -> None:
    reference, policy = by_reference(lora_task(folders, tmp_path, "sft", "base"))
    assert_equal(reference, pair_logprobs(load_policy(folders["base"]), PAIRS, 0))
    assert not torch.equal(reference.chosen, policy.chosen)
    # A new adapter changes nothing yet: the policy is its reference.
    assert_equal(*by_reference(lora_task(folders, tmp_path, "base", "base")))


def test_any_other_model_is_run_as_it_lies_there(folders: Folders, tmp_path: Path) -> None:
    reference, _ = by_reference(lora_task(folders, tmp_path, "sft", "other"))
    assert_equal(reference, pair_logprobs(load_policy(folders["other"]), PAIRS, 0))
    # Without adapters, an SFT that was one is a plain model.
    task = replace(lora_task(folders, tmp_path, "base", "sft"), config=DPOStage())
    with reference_model(task, open_policy(task, "policy"), "") as model:
        assert_equal(pair_logprobs(model, PAIRS, 0), pair_logprobs(load_policy(folders["sft"]), PAIRS, 0))


def test_a_reference_of_another_vocabulary_is_refused(folders: Folders, tmp_path: Path) -> None:
    tiny_llama(40).save_pretrained(tmp_path / "small")
    task = task_of(DPOStage(), tmp_path / "out", {"policy": folders["base"], "reference": tmp_path / "small"})
    with (
        pytest.raises(UnusableModel, match="vocabulary of 40 tokens and the policy one of") as caught,
        reference_model(task, open_policy(task, "policy"), ""),
    ):
        pass
    assert caught.value.facts["reference_vocabulary"] == 40


def test_the_reference_stops_between_batches_when_asked() -> None:
    with pytest.raises(StageInterrupted):
        pair_logprobs(tiny_llama(50), PAIRS, 0, should_stop=lambda: True)
