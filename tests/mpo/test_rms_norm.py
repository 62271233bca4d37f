from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mpo.rms_norm import RMSNormFunction, forward_of


def norm_of(kind: Any, width: int = 8) -> Any:
    layer = kind(width)
    torch.nn.init.normal_(layer.weight, mean=1.0)
    return layer


def test_it_gives_the_layer_s_numbers_and_gradients() -> None:
    layer = norm_of(LlamaRMSNorm)
    x = torch.randn(2, 5, 8, requires_grad=True)
    gradient = torch.randn(2, 5, 8)
    expected = layer(x)
    wanted = torch.autograd.grad(expected, [x, layer.weight], gradient)
    found = RMSNormFunction.apply(x, layer.weight, layer.variance_epsilon)
    assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, [x, layer.weight], gradient), wanted, strict=True):
        assert_close(ours, theirs)


def test_its_gradients_are_those_of_finite_differences() -> None:
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: RMSNormFunction.apply(x, weight, 1e-3), (x, weight))


def test_of_bf16_it_gives_what_the_layer_gives_in_fp32_but_for_one_rounding() -> None:
    layer = norm_of(LlamaRMSNorm, width=256)
    x = (100 * torch.randn(2, 5, 256)).bfloat16().requires_grad_()  # of which the squares' sum needs fp32
    gradient = torch.randn(2, 5, 256).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = RMSNormFunction.apply(x, layer.weight, layer.variance_epsilon)
    given = torch.autograd.grad(found, [x, layer.weight], gradient)
    assert [tensor.dtype for tensor in (found, *given)] == [torch.bfloat16, torch.bfloat16, torch.float32]
    wide = x.detach().float().requires_grad_()
    expected = layer(wide)
    wanted = torch.autograd.grad(expected, [wide, layer.weight], gradient.float())
    for ours, theirs in zip((found, *given), (expected, *wanted), strict=True):
        # Two roundings, of the normal and of the result, at 8 bits.
        assert_close(ours.float(), theirs, rtol=2**-7, atol=2**-7 * float(theirs.detach().abs().max()) / 4)


def test_within_autocast_fp32_is_cast_once_for_all_that_read_it() -> None:
    layer = norm_of(LlamaRMSNorm)
    x = torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = RMSNormFunction.apply(x, layer.weight, layer.variance_epsilon)
    assert_close(found, layer(x).bfloat16(), rtol=2**-8, atol=0)


def test_a_frozen_weight_gets_no_gradient() -> None:
    weight = torch.ones(4)
    x = torch.randn(2, 4, requires_grad=True)
    RMSNormFunction.apply(x, weight, 1e-6).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize(
    ("kind", "found"), [(LlamaRMSNorm, True), (GemmaRMSNorm, False), (torch.nn.LayerNorm, False)]
)
def test_only_layers_that_compute_just_this_are_found(kind: Any, found: bool) -> None:
    assert (forward_of(norm_of(kind)) is not None) is found
