"""Attention with rotary positions: the numbers and gradients of the models' own, and only in its place."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from mpo.replaced_layers import replace_where_equal
from mpo.rotary_attention import Rotation, attends_from_some, forward_of
from tests.mpo.test_packed_models import EXACT, model_of
from tests.mpo.tiny import tiny_llama

TOKENS, HEADS, WIDTH = 5, 3, 8


def angles(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a row's positions: (1, tokens, width), their halves alike."""
    half = torch.randn((1, TOKENS, WIDTH // 2), dtype=dtype)
    whole = torch.cat((half, half), dim=-1)
    return whole.cos(), whole.sin()


def by_head(cosines: Tensor) -> Tensor:
    return cosines[:, :, None]


def attention_of(name: str = "llama") -> Any:
    layer: Any = model_of(EXACT[name]).base_model.layers[0].self_attn
    return layer


def test_heads_are_turned_as_transformers_turns_them() -> None:
    cosines, sines = angles()
    x = torch.randn((1, TOKENS, HEADS, WIDTH), requires_grad=True)
    wanted = torch.randn(x.shape)
    expected = apply_rotary_pos_emb(x, x, cosines, sines, unsqueeze_dim=2)[0]
    found = Rotation.apply(x, by_head(cosines), by_head(sines))
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(each, x, wanted) for each in (found, expected)))


def test_its_gradients_are_those_of_finite_differences() -> None:
    x = torch.randn((1, TOKENS, HEADS, WIDTH), dtype=torch.float64, requires_grad=True)
    cosines, sines = map(by_head, angles(torch.float64))
    assert torch.autograd.gradcheck(lambda x: Rotation.apply(x, cosines, sines), x)


def test_bf16_is_turned_in_fp32_as_transformers_does_it() -> None:
    whole = angles()
    cosines, sines = map(by_head, whole)
    x = torch.randn((1, TOKENS, HEADS, WIDTH), dtype=torch.bfloat16, requires_grad=True)
    found = Rotation.apply(x, cosines, sines)
    (gradient,) = torch.autograd.grad(found, x, torch.ones_like(found))
    assert (found.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    expected = apply_rotary_pos_emb(x, x, *whole, unsqueeze_dim=2)[0]
    assert_close(found, expected)
    # transformers rounds both of the gradient's terms.
    assert_close(gradient, torch.autograd.grad(expected, x, torch.ones_like(expected))[0], atol=2**-6, rtol=0)


@pytest.mark.parametrize("name", sorted(EXACT.keys() - {"gpt2", "olmo, clipped"}))
def test_it_is_found_for_the_families_that_have_it(name: str) -> None:
    assert forward_of(attention_of(name)) is not None


def turns_the_other_way(layer: Any, **settings: Any) -> Any:
    cosines, sines = settings.pop("position_embeddings")
    return LlamaAttention.forward(layer, position_embeddings=(cosines, -sines), **settings)


def gives_twice_as_much(layer: Any, **settings: Any) -> Any:
    found, weights = LlamaAttention.forward(layer, **settings)
    return 2 * found, weights


def clamps_what_is_large(layer: Any, *, hidden_states: Tensor, **settings: Any) -> Any:
    return LlamaAttention.forward(layer, hidden_states=hidden_states.clamp(-8, 8), **settings)


def is_called_otherwise(layer: Any, states: Tensor) -> Any:
    raise AssertionError("not reached")


@pytest.mark.parametrize(
    "forward", [turns_the_other_way, gives_twice_as_much, clamps_what_is_large, is_called_otherwise]
)
def test_a_layer_that_computes_something_else_keeps_its_own(forward: Any) -> None:
    layer = attention_of()
    layer.__class__ = type("Other", (LlamaAttention,), {"forward": forward})
    assert forward_of(layer) is None


def test_a_layer_that_gives_nothing_yet_keeps_its_own() -> None:
    layer = attention_of()
    torch.nn.init.zeros_(layer.o_proj.weight)
    assert forward_of(layer) is None, "nothing could have been seen"


def test_a_layer_with_a_weight_beside_its_parts_keeps_its_own() -> None:
    layer = attention_of()
    layer.temperature = torch.nn.Parameter(torch.ones(()))
    assert forward_of(layer) is None


def sees_less(layer: Any, **settings: Any) -> Any:
    return LlamaAttention.forward(layer, **settings, sliding_window=1000)


def test_a_layer_with_a_window_that_it_does_not_tell_keeps_its_own() -> None:
    layer = attention_of()
    layer.__class__ = type("Other", (LlamaAttention,), {"forward": sees_less})
    assert forward_of(layer) is None
    layer.sliding_window = 1000
    assert forward_of(layer) is not None


def test_only_a_layer_that_was_given_it_attends_from_some() -> None:
    layer = tiny_llama(20).base_model.layers[0].self_attn
    assert not attends_from_some(layer)
    layer.forward = lambda *_: None
    assert not attends_from_some(layer)
    del layer.forward
    replace_where_equal(layer)
    assert attends_from_some(layer)
