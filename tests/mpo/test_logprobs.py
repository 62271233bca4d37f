import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mpo.logprobs import response_logprobs, sequence_logprobs, token_logprobs


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


class Bigrams:
    """A model whose logits after a token are that token's row of a table."""

    device = torch.device("cpu")

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def __call__(self, input_ids: torch.Tensor, **_: object) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_response_is_predicted_from_the_prompt_s_last_token_to_its_terminator() -> None:
    none = 0.0  # rows: the token before; columns: the token that follows
    table = torch.tensor(
        [
            [1.0, none, none, none],
            [none, none, 1 / 4, 3 / 4],
            [1 / 8, none, none, 7 / 8],
            [1 / 3, none, 2 / 3, none],
        ]
    ).log()
    model: Any = Bigrams(table)
    found = response_logprobs(model, [[3, 2, 1], [1], [1, 2]], [[2, 3, 0], [3], [0]], pad_id=1)
    expected = [1 / 4 * 7 / 8 * 1 / 3, 3 / 4, 1 / 8]
    assert found.exp().tolist() == pytest.approx(expected, abs=1e-6)
