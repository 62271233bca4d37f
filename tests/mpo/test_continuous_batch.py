"""Sequences that join and leave get what they would get alone, by plain forwards without any cache."""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from mpo.continuous_batch import ContinuousBatch, DrawnToken, Draws, Voice
from mpo.errors import UnusableModel
from mpo.prefix_cache import LEAST_TOKENS, PrefixCache
from mpo.seeds import row_seed
from tests.mpo.test_generation import VOCABULARY, tiny_gpt2, tiny_llama

GREEDY = Draws(0, temperature=0.0)


def tiny_mistral() -> PreTrainedModel:
    """Its attention slides over 8 tokens."""
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=8,
        initializer_range=0.3,
    )
    return MistralForCausalLM(config).eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "rotary": tiny_llama,
    "learned positions": tiny_gpt2,
    "sliding window": tiny_mistral,
}


def prompt_of(number: int, tokens: int) -> list[int]:
    return [2 + row_seed(number, place) % (VOCABULARY - 2) for place in range(tokens)]


@torch.no_grad()
def greedy_alone(policy: PreTrainedModel, prompt: Sequence[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(policy(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


class Drawing:
    """Joins and leaves, and what each sequence has drawn."""

    def __init__(self, policy: PreTrainedModel, prefixes: PrefixCache | None = None) -> None:
        self.batch, self.voice = ContinuousBatch(policy, pad_id=0), Voice(prefixes=prefixes)
        self.drawn: dict[int, list[int]] = {}

    def add(self, *prompts: tuple[int, list[int], Draws]) -> None:
        self._take(self.batch.add(prompts, self.voice))

    def step(self, tokens: int = 1) -> None:
        for _ in range(tokens):
            self._take(self.batch.step())

    def _take(self, tokens: dict[int, DrawnToken]) -> None:
        for name, token in tokens.items():
            self.drawn.setdefault(name, []).append(token.token_id)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_sequences_that_come_and_go_get_what_they_would_get_alone(
    make: Callable[[], PreTrainedModel],
) -> None:
    """Short and long prompts, some longer than all that is there; first, last and middle ones leave."""
    policy = make()
    lengths = {0: 3, 1: 17, 2: 1, 3: 29, 4: 8, 5: 2}
    prompts = {number: prompt_of(number, length) for number, length in lengths.items()}
    drawing = Drawing(policy)
    drawing.add((0, prompts[0], GREEDY), (1, prompts[1], GREEDY))
    drawing.step(3)
    drawing.add((2, prompts[2], GREEDY))
    drawing.step(5)
    drawing.batch.remove([1])
    drawing.step(2)
    drawing.add((3, prompts[3], GREEDY), (4, prompts[4], GREEDY))
    drawing.step(4)
    drawing.batch.remove([0, 4])
    drawing.step(3)
    drawing.add((5, prompts[5], GREEDY))
    drawing.step(6)
    assert sorted(drawing.batch.names) == [2, 3, 5]
    assert len({len(ids) for ids in drawing.drawn.values()}) > 3
    for number, ids in drawing.drawn.items():
        assert ids == greedy_alone(policy, prompts[number], len(ids)), number


def test_a_long_sequence_outlives_many_short_ones() -> None:
    """The columns move on with every token, and what is held does not grow beyond what the rows need."""
    policy = tiny_mistral()
    drawing = Drawing(policy)
    prompt = prompt_of(100, 5)
    drawing.add((1000, prompt, GREEDY))
    for round_ in range(12):
        drawing.add(*((10 * round_ + place, prompt_of(place, 4 + place), GREEDY) for place in range(3)))
        drawing.step(12)
        drawing.batch.remove([10 * round_ + place for place in range(3)])
    assert drawing.drawn[1000] == greedy_alone(policy, prompt, len(drawing.drawn[1000]))
    for name, ids in drawing.drawn.items():
        if name != 1000:
            assert ids == greedy_alone(policy, prompt_of(name % 10, 4 + name % 10), len(ids))


def test_each_draws_by_its_own_settings() -> None:
    policy = tiny_llama()
    kinds = [
        Draws(7),
        Draws(7, temperature=0.5),
        Draws(7, top_p=0.6),
        GREEDY,
        Draws(8, temperature=1.7, top_p=0.9, top_logprobs=3),
    ]
    together, prompt = Drawing(policy), prompt_of(1, 6)
    together.add(*((place, prompt, draws) for place, draws in enumerate(kinds)))
    together.step(11)
    for place, draws in enumerate(kinds):
        alone = Drawing(policy)
        alone.add((0, prompt, draws))
        alone.step(11)
        assert alone.drawn[0] == together.drawn[place]
    assert len({tuple(ids) for ids in together.drawn.values()}) == len(kinds)


def test_only_who_asks_is_told_the_likeliest() -> None:
    batch = ContinuousBatch(tiny_llama(), pad_id=0)
    tokens = batch.add([(0, [3, 4], GREEDY), (1, [3, 4], Draws(0, temperature=0.0, top_logprobs=4))])
    assert [len(tokens[name].top) for name in (0, 1)] == [0, 4]
    assert tokens[1].top[0] == (tokens[1].token_id, tokens[1].logprob)


def test_a_prompt_that_begins_like_an_earlier_one_is_read_on_from_there() -> None:
    policy, prefixes = tiny_llama(), PrefixCache(1 << 20)
    shared = prompt_of(3, 30)
    prompts = [[*shared, 5], [*shared, 9, 4], shared, prompt_of(4, 8)]
    for name, prompt in enumerate(prompts):
        drawing = Drawing(policy, prefixes)
        drawing.add((name, prompt, GREEDY))
        drawing.step(8)
        assert drawing.drawn[name] == greedy_alone(policy, prompt, 9)
    # The second and third share the first 30 tokens with the first; the last token is always read.
    assert prefixes.tokens_spared == 30 + 29
    assert prefixes.tokens_read == sum(map(len, prompts))


def test_the_prefixes_stay_within_their_budget() -> None:
    policy, probe = tiny_llama(), PrefixCache(1 << 20)
    Drawing(policy, probe).add((0, prompt_of(0, 40), GREEDY))
    prefixes = PrefixCache(3 * probe.bytes)
    for number in range(9):
        Drawing(policy, prefixes).add((0, prompt_of(number, 40), GREEDY))
        assert prefixes.bytes <= 3 * probe.bytes
    assert prefixes.longest(prompt_of(8, 40)) is not None
    assert prefixes.longest(prompt_of(0, 40)) is None
    assert prefixes.longest(prompt_of(8, LEAST_TOKENS)) is None


def test_logits_that_are_not_finite_are_refused_and_nothing_joins() -> None:
    policy = tiny_llama()
    with torch.no_grad():
        policy.lm_head.weight[0, 0] = float("nan")
    batch = ContinuousBatch(policy, pad_id=0)
    with pytest.raises(UnusableModel, match="not finite"):
        batch.add([(0, [3], GREEDY)])
    assert len(batch) == 0
