"""Weights, gradients and optimizer states in shards, a part on each rank: FSDP2 of torch.

Zhao et al. 2023 (arXiv 2304.11277). Each layer's weights are put together when it runs, and dropped after.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from mpo.adapters import Opened
from mpo.last_layer import decoder_layers
from mpo.ranks import Ranks


@contextmanager
def in_shards(opened: Opened, ranks: Ranks) -> Iterator[PreTrainedModel]:
    """A copy of the model to train, in shards; afterwards the model has its weights.

    The model itself waits in the host's memory, whole on every rank. Where the ranks do not shard, or an
    adapter is trained, it is itself what is trained. The block must be left by all ranks alike.
    """
    model = opened.model
    if not ranks.sharded or opened.base is not None:
        yield model
        return
    device = model.device
    model.cpu()
    trained = shard(copy.deepcopy(model), device, ranks)
    yield trained
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), trained.parameters(), strict=True):
            mine.copy_(whole(theirs.detach()))


def shard(model: PreTrainedModel, device: torch.device, ranks: Ranks) -> PreTrainedModel:
    """The same model, its weights in shards on all ranks' devices; gradients are summed over the ranks."""
    mesh = init_device_mesh(device.type, (ranks.count,))
    for part in _parts(model):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
        # A mean would divide a second time: losses are divided by the whole step's weight already.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    placed: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return placed


def _parts(model: PreTrainedModel) -> Iterator[nn.Module]:
    """What is put together at a time, inner parts first: each layer, and what is left of the model.

    A reward model is run as its backbone and then its head, each by itself; another one from the outside, as
    its head may have the weights of its embeddings.
    """
    yield from decoder_layers(model) or ()
    head = getattr(model, "score", None)
    yield from (model,) if head is None else (model.base_model, head)


def is_sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether they are shards."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its shards, on every rank; of one that is whole, itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(weight: Tensor, number: Tensor) -> Tensor:
    """Numbers in the shards of a weight; where that is whole, so are they. number: whole, on every rank."""
    if not isinstance(weight, DTensor) or number.dim() == 0:
        return number
    return distribute_tensor(number.to(weight.device), weight.device_mesh, weight.placements)


def whole_states(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `optimizer.state_dict()` gives of weights that are whole."""
    state = optimizer.state_dict()
    numbers = {
        place: {name: whole(value) for name, value in of_weight.items()}
        for place, of_weight in state["state"].items()
    }
    return {**state, "state": numbers}


def load_states(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Puts an optimizer back to what `whole_states` gave, of whatever weights it has."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbers = {
        place: {name: sharded_as(weights[place], value) for name, value in of_weight.items()}
        for place, of_weight in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": numbers})
