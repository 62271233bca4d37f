import torch
from torch.testing import assert_close

from mpo.generation import SampledResponse
from mpo.logprobs import token_logprobs
from mpo.ppo.rollouts import (
    Networks,
    Rollouts,
    entropy,
    episode_prompts,
    form_micro_batches,
    measure_tokens,
)
from mpo.responses import response_logprobs
from tests.mpo.tiny import PAD, tiny_llama

VOCABULARY = 40


def some_rollouts(count: int) -> Rollouts:
    generator = torch.Generator().manual_seed(0)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return Rollouts([ids(9) for _ in range(count)], [SampledResponse(ids(7)) for _ in range(count)])


class Critic(torch.nn.Module):
    """A head over a policy's backbone, as a reward model has it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = tiny_llama(VOCABULARY, seed=1).base_model
        self.score = torch.nn.Linear(32, 1, bias=False)


def test_logprobs_before_the_update_equal_those_of_the_update_bit_for_bit() -> None:
    policy, reference = tiny_llama(VOCABULARY), tiny_llama(VOCABULARY)
    rollouts = some_rollouts(13)
    batches = form_micro_batches(rollouts, 4, VOCABULARY, PAD, torch.device("cpu"))
    tokens = measure_tokens(Networks(policy, reference, Critic(), 0.0), batches, 13, 0.7)  # type: ignore[arg-type]
    assert torch.equal(tokens.logprobs, tokens.reference_logprobs)
    for batch in batches:
        in_update = response_logprobs(policy, batch, 0.7)
        assert in_update.requires_grad
        old = tokens.logprobs[batch.rows, : in_update.shape[1]]
        ratio = (in_update - old).exp()[batch.response_mask]
        assert torch.equal(ratio, torch.ones_like(ratio))


def test_padded_rows_equal_plain_ones() -> None:
    policy, critic, rollouts = tiny_llama(VOCABULARY), Critic(), some_rollouts(9)
    batches = form_micro_batches(rollouts, 2, VOCABULARY, PAD, torch.device("cpu"))
    networks = Networks(policy, policy, critic, 0.5)  # type: ignore[arg-type]
    tokens = measure_tokens(networks, batches, 9, 0.7)
    for row, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        ids, start, length = torch.tensor([prompt + response.token_ids]), len(prompt), len(response.token_ids)
        with torch.no_grad():
            logits = policy(ids).logits[:, start - 1 : -1] / 0.7
            values = critic.score(critic.base_model(ids).last_hidden_state)[0, start - 1 : -1, 0] - 0.5
        assert_close(
            tokens.logprobs[row, :length], token_logprobs(logits, ids[:, start:])[0], atol=1e-5, rtol=0
        )
        assert_close(tokens.entropies[row, :length], entropy(logits)[0], atol=1e-5, rtol=0)
        assert_close(tokens.values[row, :length], values, atol=1e-5, rtol=0)
        assert int(tokens.response_mask[row].sum()) == length
        assert not tokens.logprobs[row, length:].any()


def test_every_episode_is_in_exactly_one_micro_batch() -> None:
    batches = form_micro_batches(some_rollouts(13), 4, 10**7, PAD, torch.device("cpu"))
    assert [row for batch in batches for row in batch.rows.tolist()] == list(range(13))
    assert len(batches) == 13  # a vocabulary this large leaves room for one row


def test_prompts_cycle_by_permutations() -> None:
    numbers = episode_prompts(5, prompts=6, start=0, count=18)
    for start in (0, 6, 12):
        assert sorted(numbers[start : start + 6]) == list(range(6))
    assert numbers[:6] != numbers[6:12]
    assert episode_prompts(5, prompts=6, start=4, count=8) == numbers[4:12]


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size() -> None:
    assert_close(entropy(torch.zeros(2, 8)), torch.full((2,), 8.0).log())
