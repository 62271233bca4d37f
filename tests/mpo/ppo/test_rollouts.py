import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaForSequenceClassification

from mpo.config import PPOStage
from mpo.generation import SampledResponse
from mpo.logprobs import token_logprobs
from mpo.ppo.iteration import iterate
from mpo.ppo.networks import Critic, Networks, ValueHead
from mpo.ppo.rollouts import (
    PassBound,
    Rollouts,
    entropy,
    episode_prompts,
    form_micro_batches,
    measure_tokens,
    sample_rollouts,
)
from mpo.ppo.state import EPISODE
from mpo.responses import response_logits_and_states, response_logprobs
from mpo.seeds import row_seed
from tests.mpo.ppo.world import STOP, training_of
from tests.mpo.tiny import PAD, tiny_llama

VOCABULARY = 40
ROOM = PassBound(2**11, 2**11, padded=False)


def some_rollouts(count: int) -> Rollouts:
    generator = torch.Generator().manual_seed(0)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return Rollouts([ids(9) for _ in range(count)], [SampledResponse(ids(7)) for _ in range(count)])


def some_networks(critic: Critic | ValueHead) -> Networks:
    reward_model = LlamaForSequenceClassification(tiny_llama(VOCABULARY).config)
    return Networks(
        tiny_llama(VOCABULARY), tiny_llama(VOCABULARY), critic, reward_model, tiny_llama(VOCABULARY)
    )


def some_critic() -> Critic:
    config = tiny_llama(VOCABULARY, seed=1).config
    config.num_labels = 1
    return Critic(LlamaForSequenceClassification(config).eval(), 0.5)


@pytest.mark.parametrize("critic", [some_critic(), ValueHead(32)], ids=["separate", "shared trunk"])
def test_logprobs_before_the_update_equal_those_of_the_update_bit_for_bit(critic: Critic | ValueHead) -> None:
    networks, rollouts = some_networks(critic), some_rollouts(13)
    batches = form_micro_batches(rollouts, 4, ROOM, PAD, torch.device("cpu"))
    tokens = measure_tokens(networks, batches, 13, 0.7)
    assert torch.equal(tokens.logprobs, tokens.reference_logprobs)
    assert tokens.sft_logprobs is not None
    assert torch.equal(tokens.logprobs, tokens.sft_logprobs)
    for batch in batches:
        if isinstance(critic, ValueHead):
            logits, _ = response_logits_and_states(networks.policy, batch, 0.7)
            in_update = batch.spread(token_logprobs(logits, batch.response_tokens))
        else:
            in_update = response_logprobs(networks.policy, batch, 0.7)
        assert in_update.requires_grad
        old = tokens.logprobs[batch.rows, : in_update.shape[1]]
        ratio = (in_update - old).exp()[batch.response_mask]
        assert torch.equal(ratio, torch.ones_like(ratio))


@pytest.mark.parametrize("critic", ["separate", "shared_trunk"])
def test_the_kl_of_a_policy_to_itself_is_exactly_0_in_a_tiny_model_too(critic: str) -> None:
    settings = {"rollout_prompts": 6, "max_new_tokens": 3, "critic": critic, "learning_rate": 0}
    config = PPOStage.model_validate(settings)
    for seed in range(5):
        training = training_of(config, prompts=3)
        training.seed = seed
        metrics = iterate(training, lambda: False)
        assert metrics is not None
        assert (metrics["kl"], metrics["ratio_max"], metrics["clip_fraction"]) == (0.0, 1.0, 0.0)


def test_padded_rows_equal_plain_ones() -> None:
    critic, rollouts = some_critic(), some_rollouts(9)
    networks = some_networks(critic)
    batches = form_micro_batches(rollouts, 2, ROOM, PAD, torch.device("cpu"))
    tokens = measure_tokens(networks, batches, 9, 0.7)
    for row, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        ids, start, length = torch.tensor([prompt + response.token_ids]), len(prompt), len(response.token_ids)
        with torch.no_grad():
            logits = networks.policy(ids).logits[:, start - 1 : -1] / 0.7
            hidden = critic.network.base_model(ids).last_hidden_state
            values = critic.network.score(hidden)[0, start - 1 : -1, 0] - 0.5
        assert_close(
            tokens.logprobs[row, :length], token_logprobs(logits, ids[:, start:])[0], atol=1e-5, rtol=0
        )
        assert_close(tokens.entropies[row, :length], entropy(logits)[0], atol=1e-5, rtol=0)
        assert_close(tokens.values[row, :length], values, atol=1e-5, rtol=0)
        assert int(tokens.response_mask[row].sum()) == length
        assert not tokens.logprobs[row, length:].any()


def test_a_value_head_reads_the_state_before_each_token() -> None:
    head, rollouts = ValueHead(32), some_rollouts(9)
    torch.nn.init.normal_(head.weight)
    networks = some_networks(head)
    batches = form_micro_batches(rollouts, 2, ROOM, PAD, torch.device("cpu"))
    tokens = measure_tokens(networks, batches, 9, 0.7)
    for row, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        ids, start, length = torch.tensor([prompt + response.token_ids]), len(prompt), len(response.token_ids)
        with torch.no_grad():
            hidden = networks.policy.base_model(ids).last_hidden_state
            values = (hidden @ head.weight[0] + head.bias)[0, start - 1 : -1]
        assert_close(tokens.values[row, :length], values, atol=1e-4, rtol=0)


def test_every_episode_is_in_exactly_one_micro_batch() -> None:
    for bound, count in ((ROOM, 4), (PassBound(1, 1, padded=False), 13)):
        batches = form_micro_batches(some_rollouts(13), 4, bound, PAD, torch.device("cpu"))
        assert [row for batch in batches for row in batch.rows.tolist()] == list(range(13))
        assert len(batches) == count


def test_prompts_cycle_by_permutations() -> None:
    numbers = episode_prompts(5, prompts=6, start=0, count=18)
    for start in (0, 6, 12):
        assert sorted(numbers[start : start + 6]) == list(range(6))
    assert numbers[:6] != numbers[6:12]
    assert episode_prompts(5, prompts=6, start=4, count=8) == numbers[4:12]


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size() -> None:
    assert_close(entropy(torch.zeros(2, 8)), torch.full((2,), 8.0).log())


def test_a_token_that_cannot_be_drawn_adds_nothing_to_the_entropy() -> None:
    assert_close(entropy(torch.tensor([0.0, 0.0, -torch.inf])), torch.tensor(2.0).log())


def chi_square_quantile(degrees: int, normal_quantile: float) -> float:
    """Wilson and Hilferty 1931: χ² ≈ k (1 − 2/(9k) + z √(2/(9k)))³."""
    ninth = 2 / (9 * degrees)
    return degrees * (1 - ninth + normal_quantile * ninth**0.5) ** 3


def test_the_first_token_of_a_rollout_follows_the_softmax_over_the_whole_vocabulary() -> None:
    draws, vocabulary, temperature = 20_000, 24, 0.7
    policy = tiny_llama(vocabulary, spread=0.2)
    # What transformers' own sampling would take from a model, and a rollout must not.
    for name, value in {"top_k": 3, "top_p": 0.5, "min_new_tokens": 2, "repetition_penalty": 5.0}.items():
        setattr(policy.generation_config, name, value)
    with torch.no_grad():
        logits = policy(torch.tensor([[5, 7]])).logits[0, -1]
    expected = torch.softmax(logits.double() / temperature, dim=-1) * draws
    assert expected.min() > 5  # else the statistic is not chi-square's
    training = training_of(PPOStage(temperature=temperature, max_new_tokens=1))
    seeds = [row_seed(0, EPISODE, number) for number in range(draws)]
    rollouts = sample_rollouts(policy, [[5, 7]] * draws, training.sampling, seeds, lambda _: False)
    ids = torch.tensor([response.token_ids[0] for response in rollouts.responses])
    counts = torch.bincount(ids, minlength=vocabulary)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square_quantile(23, 3.0902) == pytest.approx(49.73, abs=0.2)  # a table's 0.999 quantile
    assert statistic < chi_square_quantile(vocabulary - 1, 3.0902)
    stopped = [response.finish_reason == "stop" for response in rollouts.responses]
    assert torch.equal(torch.tensor(stopped), ids == STOP)
    assert torch.equal(rollouts.was_cut, ids != STOP)
