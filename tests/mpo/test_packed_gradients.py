"""Gradients of a step's loss through packed rows, against plain autograd on the formulas written out here."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from mpo.config import DPOStage, RewardModelStage
from mpo.dpo.loss import DPOLoss, PairLogprobs
from mpo.dpo.objective import PairObjective
from mpo.packed_models import pack_where_exact, reads_packed_rows
from mpo.records import PreferencePair
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.step_gradients import accumulate_gradients, share_of
from mpo.tokenization import EncodedPair
from mpo.training import Objective, Training
from mpo.training_config import TrainingConfig
from tests.mpo.test_packed_models import EXACT, PAD, PAIRS, model_of, scoring

STEP = [*PAIRS, EncodedPair("c", [9, 9, 60, 61], [11, 5, 2], [12, 13, 14, 15], True, False)]
MARGINS, WEIGHTS = (0.5, 1.5, 0.25), (1.0, 3.0, 0.5)
BETA, FLIPPED = 0.5, 0.2
RATIOS = ((1.5, 0.5), (-0.5, 1.0), (3.0, -2.0))
"""Of each pair, by how much the policy is above its reference, in nats, on either response: h is 1, -1.5 and
5, so that the hinge, which is at 1/β, is on both sides."""


def plain_of(config: Any, auto: Any) -> PreTrainedModel:
    """The same weights in fp64, to be read one unpadded sequence at a time by attention written out."""
    model = model_of(config, auto).double()
    model.set_attn_implementation("eager")
    return model


def packed_gradients(
    model: PreTrainedModel, objective: Objective, config: TrainingConfig
) -> dict[str, Tensor]:
    """Of the mean over the step, as the engine leaves them in the weights, which are in fp32."""
    pack_where_exact(model, pytest.fail)
    assert reads_packed_rows(model)
    training = Training(model, objective, config, seed=0)
    accumulate_gradients(training, share_of(training, range(len(STEP))))
    return {name: p.grad for name, p in training.trained().items() if p.grad is not None}


def check(found: Mapping[str, Tensor], model: PreTrainedModel, loss: Tensor) -> None:
    """That these are the gradients of a loss of the model: to 1e-5 of the largest one of the same weight, or,
    where all of a weight's cancel out, to 1e-7 of the largest of all."""
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        apart = float((found[name] - gradient).abs().max())
        assert apart <= max(1e-5 * float(gradient.abs().max()), 1e-7 * largest), name


def reward(model: PreTrainedModel, ids: list[int]) -> Tensor:
    states: Tensor = model.base_model(torch.tensor([ids])).last_hidden_state
    return states[0, -1] @ model.score.weight[0]


REWARD_MODELS: dict[str, dict[str, Any]] = {
    "plain": {"margin": False, "weight": False},
    "margin": {"margin": True, "weight": False},
    "all": {"margin": True, "weight": True, "label_smoothing": 0.1, "centring": 0.05},
}


@pytest.mark.parametrize("terms", REWARD_MODELS)
@pytest.mark.parametrize("name", EXACT)
def test_reward_models_gradients_are_those_of_the_formula_on_plain_rows(name: str, terms: str) -> None:
    config = RewardModelStage(**REWARD_MODELS[terms])
    texts = [
        PreferencePair(pair.id, "", "", "", margin=margin, weight=weight)
        for pair, margin, weight in zip(STEP, MARGINS, WEIGHTS, strict=True)
    ]
    objective = PairRewards(PairRows.of(texts, STEP, config), PAD, config.label_smoothing, config.centring)
    model = model_of(scoring(name), AutoModelForSequenceClassification)
    found = packed_gradients(model, objective, config)
    plain = plain_of(scoring(name), AutoModelForSequenceClassification)
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for pair, margin, weight in zip(STEP, MARGINS, WEIGHTS, strict=True):
        chosen, rejected = (
            reward(plain, pair.prompt_ids + ids) for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        beyond = chosen - rejected - (margin if config.margin else 0)
        right, wrong = torch.sigmoid(beyond).log(), torch.sigmoid(-beyond).log()
        loss = -(1 - config.label_smoothing) * right - config.label_smoothing * wrong
        loss = loss + config.centring * (chosen + rejected) ** 2
        counts = weight if config.weight else 1.0
        total, weights = total + counts * loss, weights + counts
    check(found, plain, total / weights)


def logprob(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    logits = model(torch.tensor([[*prompt, *response]])).logits[0]
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.stack(
        [probabilities[len(prompt) - 1 + place, token].log() for place, token in enumerate(response)]
    ).sum()


def dpo_by_hand(loss: DPOLoss, h: Tensor) -> Tensor:
    """From h, of means over tokens for ipo."""
    right, wrong = torch.sigmoid(BETA * h).log(), torch.sigmoid(-BETA * h).log()
    match loss:
        case "sigmoid":
            return -right
        case "ipo":
            return (h - 1 / (2 * BETA)) ** 2
        case "hinge":
            return (1 - BETA * h) * (BETA * h < 1)
        case "robust":
            return (FLIPPED * wrong - (1 - FLIPPED) * right) / (1 - 2 * FLIPPED)
        case "cdpo":
            return -(1 - FLIPPED) * right - FLIPPED * wrong


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust", "cdpo"])
@pytest.mark.parametrize("name", EXACT)
def test_dpo_s_gradients_are_those_of_the_formula_on_plain_rows(name: str, loss: DPOLoss) -> None:
    flips = {"flip_rate": FLIPPED} if loss in ("robust", "cdpo") else {}
    config = DPOStage(loss=loss, beta=BETA, **flips)
    plain = plain_of(EXACT[name], AutoModelForCausalLM)
    total, reference = torch.zeros((), dtype=torch.float64), list[list[Tensor]]()
    for pair, ratios in zip(STEP, RATIOS, strict=True):
        sides = (pair.chosen_ids, pair.rejected_ids)
        policy = [logprob(plain, pair.prompt_ids, ids) for ids in sides]
        reference.append([(own - ratio).detach() for own, ratio in zip(policy, ratios, strict=True)])
        above = [own - other for own, other in zip(policy, reference[-1], strict=True)]
        if loss == "ipo":
            above = [ratio / len(ids) for ratio, ids in zip(above, sides, strict=True)]
        total = total + dpo_by_hand(loss, above[0] - above[1])
    given = PairLogprobs(*torch.tensor(reference).unbind(-1))
    model = model_of(EXACT[name])
    found = packed_gradients(model, PairObjective(STEP, given, config, PAD), config)
    check(found, plain, total / len(STEP))
