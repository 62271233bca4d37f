"""Layers with another forward: which ones, and that they can be put back."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mpo import replaced_layers
from mpo.packed_models import pack_where_exact, reads_packed_rows
from mpo.replaced_layers import replace_where_equal, restore
from tests.mpo.tiny import tiny_llama

IDS = torch.tensor([[1, 2, 3]])


def test_of_each_layer_a_llama_has_its_norms_its_attention_and_its_feed_forward_part_replaced() -> None:
    model = tiny_llama(20)
    replaced, layers = replace_where_equal(model), model.config.num_hidden_layers
    assert {kind: [type(layer).__name__ for layer in each] for kind, each in replaced.items()} == {
        "norm": ["LlamaRMSNorm"] * (2 * layers + 1),
        "feed-forward part": ["LlamaMLP"] * layers,
        "attention": ["LlamaAttention"] * layers,
    }


def test_a_model_is_put_back_as_it_was() -> None:
    model = tiny_llama(20)
    plain = copy.deepcopy(model)
    replaced = replace_where_equal(model)
    assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-6, rtol=1e-5)
    for layers in replaced.values():
        restore(layers)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_a_copy_computes_with_its_own_weights() -> None:
    model = tiny_llama(20)
    replace_where_equal(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert not other(IDS).logits.any()


def test_a_forward_of_somebody_else_is_left_where_it_is() -> None:
    model = tiny_llama(20)
    layer: Any = model.base_model.norm
    layer.forward = theirs = lambda x: 2 * x
    assert layer not in replace_where_equal(model)["norm"]
    assert layer.forward is theirs


def test_where_a_replaced_layer_is_found_out_the_model_reads_packed_rows_by_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(_layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def nothing(_layer: nn.Module) -> None:
        return None

    def of(layer: nn.Module) -> Any:
        return wrong if type(layer).__name__ == "LlamaRMSNorm" else None

    monkeypatch.setattr(replaced_layers, "KINDS", {**replaced_layers.KINDS, "wrong": of, "norm": nothing})
    model, said = tiny_llama(20), list[str]()
    pack_where_exact(model, said.append)
    assert reads_packed_rows(model)
    assert not said
    replaced = {type(layer).__name__ for layer in model.modules() if "forward" in vars(layer)}
    assert replaced == {"LlamaAttention", "LlamaMLP"}
