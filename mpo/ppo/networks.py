"""The networks of a PPO training: who samples, who judges, and which weights an optimizer changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.errors import UnusableModel
from mpo.heap import take_into_memory
from mpo.responses import ResponseBatch, response_states
from mpo.reward_model.score import head_scores

ADAM_EPSILON = 1e-5


@dataclass(frozen=True)
class Critic:
    """A network of its own that gives values. offset: what is taken off its head, in reward units."""

    network: PreTrainedModel
    offset: float

    def values(self, batch: ResponseBatch) -> Tensor:
        """Value before each response token: (rows, response columns), fp32; 0 at padding."""
        values = head_scores(self.network, response_states(self.network, batch))
        return batch.spread(values - self.offset)


class ValueHead(nn.Linear):
    """A value for each final hidden state of the policy; exactly 0 before its first step."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def values(self, states: Tensor) -> Tensor:
        """(tokens,) of (tokens, width)."""
        return self(states).squeeze(-1)


@dataclass(frozen=True)
class Networks:
    """Who takes part in a training.

    All may be views on one base of which a single adapter is active at a time, so nothing that needs a
    network's gradients may run another network before its backward pass. reference, sft: their weights ask
    for gradients as the policy's do, though they get none: torch computes otherwise with frozen ones, and
    equal weights must give equal bits. critic: a network of its own, or a head on the policy. sft: for the
    logged KL alone.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: Critic | ValueHead
    reward_model: PreTrainedModel
    sft: PreTrainedModel | None = None

    def whole(self) -> list[PreTrainedModel]:
        """The transformers models among them, each once: adapted ones are their bases."""
        critic = [] if isinstance(self.critic, ValueHead) else [self.critic.network]
        views = [self.policy, self.reference, self.reward_model, *critic, *([self.sft] if self.sft else [])]
        models = [view.base.model if isinstance(view, AdaptedModel) else view for view in views]
        return list({id(model): model for model in models}.values())


def weights_of(network: nn.Module | PreTrainedModel) -> dict[str, nn.Parameter]:
    """All that training changes in a network and a checkpoint keeps, by name; tied weights once."""
    return dict(network.named_parameters())


@dataclass(frozen=True)
class TrainedNetwork:
    """Weights that one optimizer changes, and whose gradients are clipped together."""

    name: str
    weights: Mapping[str, nn.Parameter]
    optimizer: torch.optim.AdamW

    @classmethod
    def of(cls, name: str, weights: Mapping[str, nn.Parameter], learning_rate: float) -> "TrainedNetwork":
        """With an AdamW that has taken no step; no weight decay."""
        take_into_memory(weights.values())
        adam = torch.optim.AdamW(
            weights.values(), lr=learning_rate, eps=ADAM_EPSILON, weight_decay=0.0, fused=True
        )
        return cls(name, weights, adam)

    def clip_gradients(self, largest_norm: float) -> float:
        """Scales the gradients down to this norm; returns what it was."""
        return torch.nn.utils.clip_grad_norm_(self.weights.values(), largest_norm).item()

    def step(self, learning_rate: float) -> None:
        """Takes one step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps of it."""
        return {"weights": kept(self.weights), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it back to what `state` gave."""
        put_back(self.weights, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


def trained_networks(networks: Networks, learning_rate: float) -> list[TrainedNetwork]:
    """The policy, and the critic beside it or, where it is a head on the policy, in the same optimizer."""
    policy, critic = weights_of(networks.policy), networks.critic
    if isinstance(critic, ValueHead):
        head = {f"value_head.{name}": weight for name, weight in weights_of(critic).items()}
        return [TrainedNetwork.of("policy", policy | head, learning_rate)]
    return [
        TrainedNetwork.of("policy", policy, learning_rate),
        TrainedNetwork.of("critic", weights_of(critic.network), learning_rate),
    ]


def kept(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The numbers of the weights, for a checkpoint."""
    return {name: weight.detach() for name, weight in weights.items()}


@torch.no_grad()
def put_back(weights: Mapping[str, nn.Parameter], numbers: Mapping[str, Tensor]) -> None:
    """Gives the weights the numbers that `kept` gave; raises KeyError where one is missing."""
    for name, weight in weights.items():
        weight.copy_(numbers[name])


@torch.no_grad()
def move_reference(networks: Networks, decay: float) -> None:
    """Exponential moving average, weight by weight: reference ← decay · reference + (1 − decay) · policy."""
    policy = weights_of(networks.policy)
    for name, weight in weights_of(networks.reference).items():
        weight.mul_(decay).add_(policy[name], alpha=1 - decay)


def check_alike(policy: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Raises UnusableModel where the reference has other weights, so that it cannot follow the policy."""
    shapes = [{n: tuple(w.shape) for n, w in weights_of(network).items()} for network in (policy, reference)]
    other = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})[:4]
    if other:
        raise UnusableModel(
            "ema_reference needs a reference with the policy's weights; these differ in shape, or only one "
            f"of the two has them: {', '.join(other)}",
            weights=other,
        )
