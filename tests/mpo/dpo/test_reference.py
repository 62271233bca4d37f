import pytest
import torch

from mpo.dpo.reference import pair_logprobs
from mpo.tokenization import EncodedPair
from tests.mpo.tiny import tiny_llama


def test_logprobs_of_both_responses_in_order() -> None:
    model = tiny_llama(50)
    pairs = [
        EncodedPair("0", [1, 9, 12], [7, 30, 2], [8, 2], True, True),
        EncodedPair("1", [1], [5, 6, 8, 9, 10, 2], [0], True, False),
    ]
    found = pair_logprobs(model, pairs, pad_id=0)
    for row, pair in enumerate(pairs):
        for logprobs, response in ((found.chosen, pair.chosen_ids), (found.rejected, pair.rejected_ids)):
            logits = model(input_ids=torch.tensor([pair.prompt_ids + response])).logits[0]
            first = len(pair.prompt_ids) - 1
            expected = sum(
                torch.log_softmax(logits[first + k], -1)[token].item() for k, token in enumerate(response)
            )
            assert logprobs[row].item() == pytest.approx(expected, abs=1e-4)
