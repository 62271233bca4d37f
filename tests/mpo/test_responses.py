import pytest
import torch
from torch.testing import assert_close

from mpo.responses import (
    distinct_prompts,
    even_parts,
    pad_responses,
    response_logits,
    response_logits_and_states,
)
from tests.mpo.tiny import PAD, tiny_llama


@pytest.mark.parametrize(
    ("count", "parts", "lengths"), [(10, 4, [2, 3, 2, 3]), (2, 4, [1, 1]), (65, 2, [32, 33])]
)
def test_parts_are_even(count: int, parts: int, lengths: list[int]) -> None:
    ranges = list(even_parts(count, parts))
    assert [len(part) for part in ranges] == lengths
    assert [i for part in ranges for i in part] == list(range(count))


def test_a_prompt_counts_once() -> None:
    message = [{"role": "user", "content": "b"}]
    assert distinct_prompts(["b", "a", message, "b", list(message)]) == ["b", "a", message]


def test_positions_come_from_lengths_though_padding_occurs_as_a_token() -> None:
    batch = pad_responses([[1, PAD, 40], [PAD]], [[PAD, 2], [50, PAD, PAD]], PAD, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, PAD, 40, PAD, 2, PAD], [PAD, PAD, PAD, 50, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert batch.position_ids[0, :5].tolist() == [0, 1, 2, 3, 4]
    assert batch.position_ids[1, 2:].tolist() == [0, 1, 2, 3]
    assert batch.response_mask.tolist() == [[True, True, False], [True, True, True]]


def test_tokens_that_are_also_padding_predict_as_in_a_plain_row() -> None:
    prompts, responses = [[1, PAD, 40], [PAD]], [[PAD, 2], [50, PAD, PAD]]
    model = tiny_llama(60, seed=3)
    with torch.no_grad():
        logits = response_logits(model, pad_responses(prompts, responses, PAD, torch.device("cpu")))
        plain = [
            model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        assert_close(logits, torch.cat(plain), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_logits_with_states_are_the_same_logits_and_the_states_that_the_head_reads() -> None:
    policy = tiny_llama(40)
    batch = pad_responses([[3], [4, 5, 6]], [[7, 8], [9]], PAD, torch.device("cpu"))
    logits, states = response_logits_and_states(policy, batch, 0.7)
    assert torch.equal(logits, response_logits(policy, batch, 0.7))
    assert_close(policy.lm_head(states) / 0.7, logits)
    alone = policy.base_model(torch.tensor([[3, 7, 8]])).last_hidden_state[0, :2]
    assert_close(states[:2], alone, atol=1e-5, rtol=0)
