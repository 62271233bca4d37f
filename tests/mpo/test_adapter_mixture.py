"""Rows of one batch, each with its own adapter, against peft's adapters active one at a time."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from mpo.adapter_mixture import AdapterMixture, low_rank_layers
from mpo.adapters import AdaptedBase, Adapter
from mpo.continuous_batch import ContinuousBatch, Draws, Voice
from mpo.errors import UnusableModel
from mpo.prefix_cache import PrefixCache
from mpo.training_config import LoRAConfig
from tests.mpo.test_continuous_batch import MODELS, prompt_of
from tests.mpo.test_generation import VOCABULARY, tiny_gpt2, tiny_llama

SHAPES = {"narrow": LoRAConfig(rank=2, alpha=8), "wide": LoRAConfig(rank=5, alpha=3)}
GREEDY = Draws(0, temperature=0.0)
IDS = torch.tensor([[5, 9, 20, 13], [7, 3, 11, 2], [5, 9, 20, 13], [4, 4, 8, 21]])


def peft_base(make: Callable[[], PreTrainedModel]) -> tuple[AdaptedBase, dict[str, Adapter]]:
    """A base under two adapters of other ranks and scales, both far from nothing."""
    base, adapters = AdaptedBase(make(), ""), {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        base.add(name, shape, None, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in base.parameters(name).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        adapters[name] = Adapter(base.wrapped().peft_config[name], base.state(name), "")
    return base, adapters


def mixture_of(make: Callable[[], PreTrainedModel], adapters: dict[str, Adapter]) -> AdapterMixture:
    mixture = AdapterMixture(make())
    for name, adapter in adapters.items():
        mixture.add(name, low_rank_layers(adapter))
    return mixture


@torch.no_grad()
def alone(base: AdaptedBase, name: str | None, ids: Tensor) -> Tensor:
    base.activate(name)
    logits: Tensor = base.model(ids).logits
    return logits


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_each_row_runs_with_its_own_adapter(make: Callable[[], PreTrainedModel]) -> None:
    base, adapters = peft_base(make)
    mixture = mixture_of(make, adapters)
    names = ["narrow", None, "wide", "narrow"]
    expected = torch.cat([alone(base, name, ids[None]) for name, ids in zip(names, IDS, strict=True)])
    assert (expected[0] - expected[2]).abs().max() > 0.1, "the adapters differ"
    with torch.no_grad(), mixture.rows(names):
        found = mixture.model(IDS).logits
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad(), mixture.rows(["wide"]):
        assert_close(mixture.model(IDS).logits, alone(base, "wide", IDS), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(mixture.model(IDS).logits, make()(IDS).logits), "outside, the base alone"


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_sequences_of_several_adapters_get_what_each_gets_alone(
    make: Callable[[], PreTrainedModel],
) -> None:
    """Equal prompts of other models, so that keys and values of one would show in another's tokens."""
    base, adapters = peft_base(make)
    mixture = mixture_of(make, adapters)
    batch = ContinuousBatch(mixture.model, pad_id=0, mixture=mixture)
    voices = {name: Voice(name, PrefixCache(1 << 24)) for name in (None, "narrow", "wide")}
    prompts = {0: prompt_of(1, 18), 1: prompt_of(2, 3), 2: prompt_of(1, 25)}
    drawn: dict[int, list[int]] = {}
    expected = {}
    for turn, (name, voice) in enumerate(voices.items()):
        rows = [(10 * turn + row, prompt, GREEDY) for row, prompt in prompts.items()]
        for number, token in batch.add(rows, voice).items():
            drawn.setdefault(number, []).append(token.token_id)
        for number, prompt, _ in rows:
            expected[number] = greedy(base, name, prompt, 12)
        take(drawn, batch, 3)
    take(drawn, batch, 12)
    # A second time: what a prompt's prefix is read from must be of the same adapter.
    again = {
        name: batch.add([(99 + turn, prompts[0], GREEDY)], voice)
        for turn, (name, voice) in enumerate(voices.items())
    }
    assert again == {name: {} for name in voices}, "known, so that the next step draws the first token"
    take(drawn, batch, 12)
    assert {number: tokens[:12] for number, tokens in drawn.items() if number < 99} == expected
    for turn in range(3):
        assert drawn[99 + turn][:12] == expected[10 * turn]


def take(drawn: dict[int, list[int]], batch: ContinuousBatch, steps: int) -> None:
    for _ in range(steps):
        for number, token in batch.step().items():
            drawn.setdefault(number, []).append(token.token_id)


def greedy(base: AdaptedBase, name: str | None, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(alone(base, name, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_an_adapter_that_is_removed_leaves_the_base_and_the_others_as_they_were() -> None:
    base, adapters = peft_base(tiny_llama)
    mixture = mixture_of(tiny_llama, adapters)
    with torch.no_grad(), mixture.rows(["narrow", "wide"] * 2):
        mixture.model(IDS)
    mixture.remove("wide")
    with torch.no_grad(), mixture.rows(["narrow", None] * 2):
        found = mixture.model(IDS).logits
    assert_close(found[0], alone(base, "narrow", IDS[:1])[0], atol=1e-5, rtol=1e-5)
    assert_close(found[1], alone(base, None, IDS[1:2])[0], atol=1e-5, rtol=1e-5)
    mixture.remove("narrow")
    assert all(not module._forward_hooks for module in mixture.model.modules())


def test_an_adapter_of_another_model_is_refused_as_a_whole() -> None:
    _, adapters = peft_base(tiny_llama)
    for other in (lambda: wider_llama(), tiny_gpt2):
        mixture = AdapterMixture(other())
        with pytest.raises(UnusableModel, match="does not fit"):
            mixture.add("narrow", low_rank_layers(adapters["narrow"]))
        assert all(not module._forward_hooks for module in mixture.model.modules())


def wider_llama() -> PreTrainedModel:
    model = tiny_llama()
    config = model.config
    config.intermediate_size = 2 * config.intermediate_size
    return type(model)(config)


def test_numbers_that_are_not_finite_are_refused() -> None:
    _, adapters = peft_base(tiny_llama)
    layers = low_rank_layers(adapters["narrow"])
    path = next(iter(layers))
    layers[path] = replace(layers[path], up=layers[path].up * torch.nan)
    with pytest.raises(UnusableModel, match="not finite"):
        AdapterMixture(tiny_llama()).add("narrow", layers)


@pytest.mark.parametrize(
    "changed", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}}]
)
def test_an_adapter_of_another_kind_is_refused(changed: dict[str, object]) -> None:
    _, adapters = peft_base(tiny_llama)
    adapter = adapters["narrow"]
    for name, value in changed.items():
        setattr(adapter.config, name, value)
    with pytest.raises(UnusableModel, match="two low-rank weights"):
        low_rank_layers(adapter)


def test_weights_besides_the_low_rank_ones_are_refused() -> None:
    _, adapters = peft_base(tiny_llama)
    more = {**adapters["narrow"].weights, "base_model.model.lm_head.weight": torch.zeros(VOCABULARY, 32)}
    with pytest.raises(UnusableModel, match="two low-rank weights"):
        low_rank_layers(replace(adapters["narrow"], weights=more))
