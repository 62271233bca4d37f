import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mpo.config import RewardModelStage
from mpo.packed_models import pack_where_exact, say_nothing
from mpo.packed_rows import tokens_at_once
from mpo.policies import load_reward_model
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.reward_model.score import score_encoded
from mpo.tokenization import EncodedPair
from mpo.training import Training, train_step
from tests.mpo.tiny import EOS, PAD, word_pairs, write_policy, write_reward_model

PAIRS = [
    EncodedPair("a", [1, 9, 12], [7, 30, EOS], [8, EOS], True, True),
    EncodedPair("b", [1, 4], [5, 6, 8, 9, 10, EOS], [11, 12, 13, 14], True, False),
    EncodedPair("c", [1, 20, 21, 22, 23], [9, EOS], [31, 0], True, False),  # cut at the padding id
    EncodedPair("d", [1], [9], [7], False, False),
]
LEARNED = RewardModelStage(learning_rate=1e-3, batch_pairs=8, epochs=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = tmp_path_factory.mktemp("objective")
    return write_reward_model(house / "rm", write_policy(house / "base"))


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return load_reward_model(folder)


def rewards(pairs: list[EncodedPair], weights: list[float] | None = None, **terms: float) -> PairRewards:
    rows = PairRows(pairs, [0.0] * len(pairs), weights or [1.0] * len(pairs))
    return PairRewards(rows, PAD, terms.get("label_smoothing", 0.0), terms.get("centring", 0.0))


def trained(folder: Path, objective: PairRewards) -> dict[str, torch.Tensor]:
    training = Training(load_reward_model(folder).train(), objective, LEARNED, seed=0)
    for _ in range(training.total_steps):
        train_step(training)
    return {name: p.detach() for name, p in training.trained().items()}


def test_a_step_reports_the_means_of_its_pairs(model: PreTrainedModel) -> None:
    chosen, rejected = score_encoded(model, PAIRS).unbind(-1)
    training = Training(model.train(), rewards(PAIRS), LEARNED, seed=0)
    metrics = train_step(training)
    gaps = (chosen - rejected).tolist()
    assert metrics["loss"] == pytest.approx(sum(math.log1p(math.exp(-gap)) for gap in gaps) / 4, abs=1e-6)
    assert metrics["gap"] == pytest.approx(sum(gaps) / 4, abs=1e-6)
    assert metrics["accuracy"] == sum(gap > 0 for gap in gaps) / 4
    assert metrics["reward_mean"] == pytest.approx(torch.cat([chosen, rejected]).mean().item(), abs=1e-6)
    assert metrics.keys() == {"loss", "accuracy", "gap", "reward_mean", "grad_norm", "learning_rate"}
    assert min(abs(gap) for gap in gaps) > 1e-3, "rewards too alike to tell right from wrong"


def test_equal_rewards_count_half(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.score.weight.zero_()
    _, sums = rewards(PAIRS).losses(model, [0, 1, 2])
    assert sums["accuracy"].item() == 1.5


def test_margin_smoothing_and_centring_enter_the_loss(model: PreTrainedModel) -> None:
    chosen, rejected = score_encoded(model, PAIRS[:1])[0].tolist()
    objective = PairRewards(PairRows(PAIRS[:1], [0.5], [3.0]), PAD, label_smoothing=0.2, centring=0.1)
    z = chosen - rejected - 0.5
    alone = 0.8 * math.log1p(math.exp(-z)) + 0.2 * math.log1p(math.exp(z)) + 0.1 * (chosen + rejected) ** 2
    assert objective.losses(model, [0])[0].item() == pytest.approx(3 * alone, rel=1e-5)


def test_weight_two_equals_the_pair_given_twice(folder: Path) -> None:
    weighted = trained(folder, rewards(PAIRS[:3], weights=[1.0, 2.0, 1.0]))
    twice = trained(folder, rewards([PAIRS[0], PAIRS[1], PAIRS[1], PAIRS[2]]))
    alike = trained(folder, rewards(PAIRS[:3]))
    for name, weight in weighted.items():
        torch.testing.assert_close(weight, twice[name], atol=1e-5, rtol=0)
    assert any((weight - alike[name]).abs().max() > 1e-4 for name, weight in weighted.items())


def test_weight_zero_equals_the_pair_left_out(folder: Path) -> None:
    weighted = trained(folder, rewards(PAIRS[:3], weights=[1.0, 0.0, 1.0]))
    without = trained(folder, rewards([PAIRS[0], PAIRS[2]]))
    for name, weight in weighted.items():
        torch.testing.assert_close(weight, without[name], atol=1e-5, rtol=0)


def test_a_pairs_loss_is_the_same_in_any_company(model: PreTrainedModel) -> None:
    objective = rewards(PAIRS)
    alone = [objective.losses(model, [row])[0].item() for row in range(4)]
    together = objective.losses(model, [2, 0, 3, 1])[0].item()
    assert together == pytest.approx(sum(alone), rel=1e-6)


def test_scores_are_fp32_whatever_the_backbone_computes_in(folder: Path) -> None:
    loss, sums = rewards(PAIRS).losses(load_reward_model(folder).bfloat16(), [0, 1])
    assert {loss.dtype, sums["gap"].dtype} == {torch.float32}


def test_margins_and_weights_are_those_of_the_data_where_the_configuration_asks_for_them() -> None:
    pairs = word_pairs(2)
    pairs[0] = replace(pairs[0], margin=0.5, weight=2.0)
    asked = PairRows.of(pairs, PAIRS[:2], RewardModelStage())
    assert (asked.margins, asked.weights) == ([0.5, 0.0], [2.0, 1.0])
    unasked = PairRows.of(pairs, PAIRS[:2], RewardModelStage(margin=False, weight=False))
    assert (unasked.margins, unasked.weights) == ([0.0, 0.0], [1.0, 1.0])


def first_pass(model: PreTrainedModel, prompt: int, response: int = 1) -> int:
    pair = EncodedPair("a", [1] * prompt, [5] * response, [6] * response, False, False)
    return len(next(iter(rewards([pair] * 40).passes(model, range(40)))))


def test_long_pairs_are_fewer_at_once_and_at_least_one(model: PreTrainedModel) -> None:
    assert [first_pass(model, longest - 1) for longest in (10, 512, 1024, 10**6)] == [32, 8, 4, 1]
    pack_where_exact(model, say_nothing)
    at_once = tokens_at_once(model.device)
    assert first_pass(model, 2, 4) == 40
    assert first_pass(model, at_once // 4 - 2) == 4
    assert first_pass(model, 10**6) == 1
