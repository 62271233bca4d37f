"""The gated product: the numbers and gradients of the models' own, and only in its place."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mpo.gated_feed_forward import GatedProduct, forward_of
from tests.mpo.test_packed_models import EXACT, model_of


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
