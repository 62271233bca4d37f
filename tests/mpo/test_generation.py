import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mpo.errors import UnusableModel
from mpo.generation import SamplingConfig, choose, sample
from mpo.seeds import row_seed

VOCABULARY = 24
PROMPTS = [[3], [5, 7, 9, 11, 2], [4, 4], [8, 1, 6]]


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


def config_of(**changes: object) -> SamplingConfig:
    settings = {"max_new_tokens": 12, "stop_ids": frozenset({1}), "pad_id": 0, **changes}
    return SamplingConfig(**settings)  # type: ignore[arg-type]


@torch.no_grad()
def greedy_without_cache(policy: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(policy(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("policy", [tiny_llama(), tiny_gpt2()], ids=["rotary", "learned positions"])
def test_greedy_batch_equals_one_prompt_at_a_time_without_cache(policy: PreTrainedModel) -> None:
    responses = sample(policy, PROMPTS, config_of(temperature=0.0), [0] * 4)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        assert response.token_ids == greedy_without_cache(policy, prompt, 12)


def test_draws_do_not_depend_on_what_else_is_in_the_batch() -> None:
    policy, seeds = tiny_llama(), [row_seed(7, i) for i in range(4)]
    together = sample(policy, PROMPTS, config_of(), seeds)
    alone = [sample(policy, [p], config_of(), [s])[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert len({tuple(r.token_ids) for r in together}) == 4


def test_last_action_is_the_stop_token_or_the_cut_one() -> None:
    responses = sample(tiny_llama(), [[3, 2]] * 60, config_of(max_new_tokens=20), range(60))
    assert {r.finish_reason for r in responses} == {"stop", "length"}
    for response in responses:
        stopped = response.finish_reason == "stop"
        assert (response.token_ids[-1] == 1) == stopped
        assert 1 not in response.token_ids[:-1]
        assert stopped or len(response.token_ids) == 20
        assert response.terminated_ids(9)[-1] == (9 if stopped else response.token_ids[-1])


def test_first_token_follows_the_softmax_over_the_whole_vocabulary() -> None:
    policy, draws = tiny_llama(), 20_000
    with torch.no_grad():
        logits = policy(torch.tensor([[5, 7]])).logits[0, -1]
    expected = torch.softmax(logits.double() / 0.8, dim=-1) * draws
    config = config_of(max_new_tokens=1, temperature=0.8, stop_ids=frozenset())
    sampled = sample(policy, [[5, 7]] * draws, config, [row_seed(0, i) for i in range(draws)])
    ids = [response.token_ids[0] for response in sampled]
    counts = torch.bincount(torch.tensor(ids), minlength=VOCABULARY)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert expected.min() > 5  # else the statistic is not chi-square's
    assert statistic < 49.73  # the 0.999 quantile at 23 degrees of freedom


def test_top_p_draws_from_the_smallest_set_that_holds_the_mass() -> None:
    logprobs = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(1000, -1)
    uniforms = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    ids = choose(logprobs, uniforms, 1.0, top_p=0.7)
    assert set(ids.tolist()) == {1, 3}
    assert int((ids == 1).sum()) == pytest.approx(667, abs=2)


def test_logprobs_and_the_stream_agree_with_the_result() -> None:
    policy, streamed = tiny_llama(), []
    config = config_of(temperature=0.5, top_logprobs=VOCABULARY)
    response = sample(
        policy,
        [[5, 7, 2]],
        config,
        [3],
        on_token=lambda i, token, logprob: streamed.append((i, token, logprob)),
    )[0]
    assert streamed == [(0, t, p) for t, p in zip(response.token_ids, response.logprobs, strict=True)]
    ids = [5, 7, 2, *response.token_ids]
    with torch.no_grad():
        logprobs = torch.log_softmax(policy(torch.tensor([ids])).logits[0], dim=-1)
    for place, (token, logprob) in enumerate(zip(response.token_ids, response.logprobs, strict=True)):
        assert logprob == pytest.approx(float(logprobs[2 + place, token]), abs=1e-5)
        assert dict(response.top_logprobs[place])[token] == logprob
        values = [value for _, value in response.top_logprobs[place]]
        assert values == sorted(values, reverse=True)


def test_should_stop_ends_one_sequence_and_leaves_the_others() -> None:
    policy, seeds = tiny_llama(), [row_seed(7, i) for i in range(4)]
    config = config_of(stop_ids=frozenset())
    free = sample(policy, PROMPTS, config, seeds)
    stopped = sample(policy, PROMPTS, config, seeds, should_stop=lambda index: index == 2)
    assert len(stopped[2].token_ids) == 1
    assert stopped[2].finish_reason == "stop"
    assert [stopped[i].token_ids for i in (0, 1, 3)] == [free[i].token_ids for i in (0, 1, 3)]


def test_a_model_without_finite_logits_is_refused() -> None:
    policy = tiny_llama()
    with torch.no_grad():
        policy.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(UnusableModel, match="not finite"):
        sample(policy, [[3]], config_of(), [0])
