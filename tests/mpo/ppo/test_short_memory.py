"""PPO where the memory does not hold a micro-batch: halved once, said, and the same but for rounding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from mpo.config import PPOStage
from mpo.generation import SampledResponse
from mpo.ppo import rollouts, update
from mpo.ppo.iteration import iterate
from mpo.ppo.rollouts import PassBound, Rollouts, form_micro_batches
from mpo.ppo.state import PPOTraining, restore, save
from mpo.responses import ResponseBatch, response_logprobs
from mpo.step_gradients import MEMORY_IS_SHORT
from tests.mpo.ppo.world import PAD, training_of

ROWS = 6
SETTINGS = {"rollout_prompts": ROWS, "episodes": 2 * ROWS, "mini_batches": 1, "max_new_tokens": 3}


def trained(said: list[str], folder: Path | None = None) -> PPOTraining:
    """After two iterations. folder: where it is kept after the first, and from where another one goes on."""
    training = training_of(PPOStage.model_validate({**SETTINGS, "learning_rate": 1e-3}), prompts=3)
    training.tell = said.append
    assert iterate(training, lambda: False) is not None
    if folder is not None:
        save(training, folder)
        training = training_of(training.config, prompts=3)
        training.tell = said.append
        restore(training, folder)
    assert iterate(training, lambda: False) is not None
    return training


def weights(training: PPOTraining) -> dict[str, Tensor]:
    return {f"{each.name}.{name}": w for each in training.trained for name, w in each.weights.items()}


def scarce(module: Any, rows: int, monkeypatch: pytest.MonkeyPatch, *, training_alone: bool) -> list[int]:
    """The device holds so many rows at once; which passes were tried."""
    tried: list[int] = []

    def logprobs(model: PreTrainedModel, batch: ResponseBatch, temperature: float) -> Tensor:
        tried.append(len(batch.rows))
        if len(batch.rows) > rows and torch.is_grad_enabled() == training_alone:
            raise torch.OutOfMemoryError
        return response_logprobs(model, batch, temperature)

    monkeypatch.setattr(module, "response_logprobs", logprobs)
    return tried


@pytest.mark.parametrize(
    ("module", "training_alone", "expected"),
    [
        # What the networks say is asked anew of halves, and the update takes these.
        pytest.param(rollouts, False, [6, 3, 3, 3, 3], id="measuring"),
        # Four epochs: the first begins anew; in the next iteration halves are read at once.
        pytest.param(update, True, [6, *[3] * 8, *[3] * 8], id="updating"),
    ],
)
def test_micro_batches_are_halved_once_and_it_is_said(
    module: Any, training_alone: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(said := [])
    assert said == []
    tried = scarce(module, ROWS // 2, monkeypatch, training_alone=training_alone)
    halved = trained(said)
    assert said == [MEMORY_IS_SHORT]
    assert tried == expected
    for name, weight in weights(halved).items():
        assert_close(weight, weights(plain)[name], atol=1e-5, rtol=0)


def test_a_resumed_training_knows_that_passes_are_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = scarce(update, ROWS // 2, monkeypatch, training_alone=True)
    trained(said := [], tmp_path)
    assert said == [MEMORY_IS_SHORT]
    assert tried == [6, *[3] * 16]


def test_half_of_a_micro_batch_that_does_not_fit_either_ends_the_training_before_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scarce(update, 1, monkeypatch, training_alone=True)
    training = training_of(PPOStage.model_validate(SETTINGS), prompts=3)
    before = {name: weight.detach().clone() for name, weight in weights(training).items()}
    with pytest.raises(torch.OutOfMemoryError):
        iterate(training, lambda: False)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(training).items())
    assert training.optimizer_steps == 0


@pytest.mark.parametrize("padded", [False, True])
def test_micro_batches_hold_as_many_tokens_as_a_pass_may(padded: bool) -> None:
    lengths = [(2, 1), (9, 3), (4, 4), (1, 1), (7, 2), (3, 4), (2, 2), (5, 1)]
    episodes = Rollouts([[3] * p for p, _ in lengths], [SampledResponse([4] * r) for _, r in lengths])
    count: Callable[[Sequence[tuple[int, int]]], int] = lambda rows: (  # noqa: E731
        len(rows) * (max(p for p, _ in rows) + max(r for _, r in rows)) if padded else sum(map(sum, rows))
    )
    for tokens in (8, 16, 24, 64):
        bound = PassBound(tokens, 20, padded)
        batches = form_micro_batches(episodes, 2, bound, PAD, torch.device("cpu"))
        parts = [[lengths[row] for row in batch.rows.tolist()] for batch in batches]
        assert [pair for part in parts for pair in part] == lengths
        assert len(parts) % 2 == 0, "as many for each optimizer step"
        assert all(len(part) == 1 or count(part) <= tokens for part in parts)
    assert len(parts) == 2, "no more than the bound asks for"
    few = form_micro_batches(episodes, 2, PassBound(64, 8, padded), PAD, torch.device("cpu"))
    assert len(few) == 4, "of the responses the logits are kept"


def test_half_of_a_batch_is_read_as_in_the_whole() -> None:
    training = training_of(PPOStage.model_validate(SETTINGS), prompts=3)
    policy, bound = training.networks.policy, PassBound(1000, 1000, padded=False)
    episodes = Rollouts(
        [[1], [1, 3, 3], [1, 3]], [SampledResponse([3, 2]), SampledResponse([4]), SampledResponse([3])]
    )
    (whole,) = form_micro_batches(episodes, 1, bound, PAD, torch.device("cpu"))
    expected = response_logprobs(policy, whole, 1.0)
    first, second = whole.halves()
    assert (first.rows.tolist(), second.rows.tolist()) == ([0], [1, 2])
    found = torch.cat([response_logprobs(policy, half, 1.0) for half in (first, second)])
    assert_close(found, expected, atol=1e-6, rtol=0)
    assert first.halves() == [first]
