import pytest
import torch

from mpo.sft.loss import response_loss
from tests.mpo.tiny import tiny_llama


def test_loss_is_the_cross_entropy_of_response_tokens_alone() -> None:
    model = tiny_llama(50)
    prompt, response = [1, 9, 12], [7, 30, 2]
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    expected = sum(-torch.log_softmax(logits[2 + k], -1)[token].item() for k, token in enumerate(response))
    found = response_loss(model, [prompt], [response], pad_id=0)
    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_padding_changes_no_row() -> None:
    model = tiny_llama(50)
    prompts, responses = [[1, 4], [1, 9, 12, 3, 20]], [[0, 2], [7, 30, 31, 2]]
    alone = [response_loss(model, [p], [r], pad_id=0).item() for p, r in zip(prompts, responses, strict=True)]
    together = response_loss(model, prompts, responses, pad_id=0).item()
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_a_batch_and_its_rows_one_by_one_give_the_same_gradient() -> None:
    model = tiny_llama(50)
    prompts, responses = [[1, 4], [1, 9, 12, 3, 20]], [[5, 2], [7, 30, 31, 2]]
    response_loss(model, prompts, responses, pad_id=0).backward()
    together = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for prompt, response in zip(prompts, responses, strict=True):
        response_loss(model, [prompt], [response], pad_id=0).backward()
    one_by_one = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
