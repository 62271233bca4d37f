"""The gated product: the numbers and gradients of the models' own, and only in its place."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaMLP

from mpo.gated_feed_forward import GatedProduct, forward_of
from tests.mpo.test_packed_models import EXACT, model_of
from tests.mpo.tiny import tiny_llama


def test_it_gives_the_numbers_and_gradients_of_its_formula() -> None:
    gate, up = (torch.randn((2, 3, 5), requires_grad=True) for _ in range(2))
    wanted = torch.randn((2, 3, 5))
    found, expected = GatedProduct.apply(gate, up), F.silu(gate) * up
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(each, (gate, up), wanted) for each in (found, expected)))


def test_a_second_backward_pass_over_what_the_first_has_used_up_is_refused() -> None:
    gate, up = (torch.randn(4, requires_grad=True) for _ in range(2))
    total = GatedProduct.apply(gate, up).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize(("name", "found"), [("llama", True), ("qwen3", True), ("gemma", False)])
def test_only_parts_that_compute_just_this_are_found(name: str, found: bool) -> None:
    assert (forward_of(model_of(EXACT[name]).base_model.layers[0].mlp) is not None) is found


def clamps_what_is_large(layer: Any, states: Tensor) -> Any:
    return layer.down_proj(F.silu(layer.gate_proj(states)) * layer.up_proj(states).clamp(max=7))


def gives_more_than_states(layer: Any, states: Tensor) -> Any:
    return LlamaMLP.forward(layer, states), states


@pytest.mark.parametrize("forward", [clamps_what_is_large, gives_more_than_states])
def test_a_part_that_computes_something_else_keeps_its_own(forward: Any) -> None:
    layer = tiny_llama(20).base_model.layers[0].mlp
    assert forward_of(layer) is not None
    layer.__class__ = type("Other", (LlamaMLP,), {"forward": forward})
    assert forward_of(layer) is None
