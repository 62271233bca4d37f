from collections.abc import Sequence

import pytest
import torch
from torch.testing import assert_close

from mpo.last_layer import last_layer_at
from mpo.packed_models import pack_where_exact, packed_states
from mpo.packed_rows import Family, PackedRow
from tests.mpo.tiny import tiny_llama

IDS = torch.tensor([[3, 4, 5, 6, 7]])


def states_at(places: Sequence[int]) -> torch.Tensor:
    model = tiny_llama(20)
    with torch.no_grad(), last_layer_at(model, torch.tensor(places)):
        states: torch.Tensor = model.base_model(IDS).last_hidden_state[0]
    return states


def test_states_are_the_model_s_own_where_they_are_read() -> None:
    with torch.no_grad():
        whole = tiny_llama(20).base_model(IDS).last_hidden_state[0]
    found = states_at([4, 1, 1])
    assert_close(found[[1, 4]], whole[[1, 4]])
    assert not torch.allclose(found[[0, 2, 3]], whole[[0, 2, 3]]), "the others were not computed"


def test_the_last_layer_sees_those_positions_alone_and_all_afterwards() -> None:
    model, seen = tiny_llama(20), list[int]()
    part = model.base_model.layers[-1].mlp.up_proj
    part.register_forward_hook(lambda _part, inputs, _output: seen.append(inputs[0].shape[1]))
    with last_layer_at(model, torch.tensor([2, 0, 2])):
        model.base_model(IDS)
    model.base_model(IDS)
    assert seen == [2, 5]


def test_its_attention_asks_from_those_positions_alone_and_sees_all() -> None:
    model, row = tiny_llama(20), PackedRow.of([Family([3, 4, 5], [[6, 7], [8, 9, 10]])])
    pack_where_exact(model, pytest.fail)
    with torch.no_grad():
        whole = model.base_model(**row.inputs()).last_hidden_state[0]
    attention, seen = model.base_model.layers[-1].self_attn, dict[str, int]()
    for name in ("q_proj", "k_proj"):
        part = getattr(attention, name)
        part.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0].shape[1]}))
    with torch.no_grad():
        found = packed_states(model, row, row.ends)
    assert_close(found, whole[row.ends])
    assert seen == {"q_proj": 2, "k_proj": 8}


def test_gradients_of_a_place_that_is_read_twice_are_counted_once() -> None:
    def gradient(narrow: bool) -> torch.Tensor:
        model = tiny_llama(20)
        places = torch.tensor([1, 1, 3])
        if narrow:
            with last_layer_at(model, places):
                states = model.base_model(IDS).last_hidden_state[0, places]
        else:
            states = model.base_model(IDS).last_hidden_state[0, places]
        (states * torch.arange(3)[:, None]).sum().backward()
        found: torch.Tensor = model.base_model.layers[-1].mlp.up_proj.weight.grad
        return found

    assert_close(gradient(True), gradient(False))


def test_where_nothing_is_read_nothing_fails() -> None:
    model, row = tiny_llama(20), PackedRow.of([Family([3, 4], [[]])])
    pack_where_exact(model, pytest.fail)
    assert packed_states(model, row, row.before).shape == (0, 32)
