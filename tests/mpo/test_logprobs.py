import math

import pytest
import torch

from mpo.logprobs import sequence_logprobs, token_logprobs


def test_logprob_of_a_token_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(math.log(3 / 4), abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([0.0, 2 * math.log(3.0)])
    found = token_logprobs(logits, torch.tensor(0), temperature=2.0)
    assert found.item() == pytest.approx(math.log(1 / 4), abs=1e-6)


def test_half_precision_logits_are_normalized_in_fp32() -> None:
    logits = torch.zeros(1, 100_000, dtype=torch.bfloat16)
    found = token_logprobs(logits, torch.tensor([5]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(-math.log(100_000), abs=1e-4)


def test_a_response_token_is_predicted_one_position_earlier() -> None:
    # Position 0 gives token 1 probability 3/4, position 1 gives token 0 a quarter; position 2 is unread.
    three = math.log(3.0)
    logits = torch.tensor([[[0.0, three], [0.0, three], [50.0, 0.0]]])
    token_ids = torch.tensor([[0, 1, 0]])
    both = sequence_logprobs(logits, token_ids, torch.tensor([[False, True, True]]))
    assert both.item() == pytest.approx(math.log(3 / 4) + math.log(1 / 4), abs=1e-6)
    last = sequence_logprobs(logits, token_ids, torch.tensor([[False, False, True]]))
    assert last.item() == pytest.approx(math.log(1 / 4), abs=1e-6)


def test_tokens_outside_the_response_get_no_gradient() -> None:
    logits = torch.randn(1, 4, 5, requires_grad=True)
    mask = torch.tensor([[False, False, True, False]])
    sequence_logprobs(logits, torch.tensor([[1, 2, 3, 4]]), mask).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, [0, 2, 3]].abs().sum() == 0
    assert logits.grad[0, 1].abs().sum() > 0
