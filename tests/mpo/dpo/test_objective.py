from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig

from mpo.config import DPOStage
from mpo.dpo.loss import PairLogprobs
from mpo.dpo.objective import PairObjective
from mpo.dpo.reference import pair_logprobs
from mpo.dpo.train import train_dpo
from mpo.policies import load_policy
from mpo.tokenization import EncodedPair
from tests.mpo.tiny import EOS, PAD, RecordingReporter, task_of, tiny_llama, write_pairs, write_policy

VOCABULARY = 12
PAIRS = [
    EncodedPair("long", [1, 5, 6], [7, 8, 9, EOS], [10, EOS], True, True),
    EncodedPair("short", [1], [4], [11, PAD], False, False),
]


class FixedLogits:
    """A model whose logits are given: rows as `PairObjective` asks for them, the chosen ones first."""

    device = torch.device("cpu")
    config = LlamaConfig(attn_implementation="eager")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, **_: object) -> Any:
        return SimpleNamespace(logits=self.logits)


def objective_of(pairs: list[EncodedPair], reference: PairLogprobs, **options: object) -> PairObjective:
    return PairObjective(pairs, reference, DPOStage.model_validate(options), PAD)


def zeros(count: int) -> PairLogprobs:
    return PairLogprobs(torch.zeros(count), torch.zeros(count))


READ = {0: [2, 3, 4, 5], 1: [0], 2: [2, 3], 3: [0, 1]}
"""Positions of each row whose logits predict a response token: from the prompt's last one on."""


def read_mask() -> Tensor:
    mask = torch.zeros(4, 7, dtype=torch.bool)
    for row, positions in READ.items():
        mask[row, positions] = True
    return mask


@pytest.mark.parametrize(
    "options", [{}, {"length_normalised": True, "sft_coefficient": 0.5}, {"loss": "ipo"}]
)
def test_logits_of_prompts_and_padding_change_neither_loss_nor_gradient(options: dict[str, object]) -> None:
    objective, found = objective_of(PAIRS, zeros(2), **options), []
    given_ = torch.randn(4, 7, VOCABULARY, generator=torch.Generator().manual_seed(0))
    for elsewhere in (0.0, 1e4, float("nan")):
        logits = torch.where(read_mask().unsqueeze(-1), given_, elsewhere).requires_grad_(True)
        loss, _ = objective.losses(FixedLogits(logits), [0, 1])  # type: ignore[arg-type]
        loss.backward()
        assert logits.grad is not None
        assert logits.grad[~read_mask()].abs().max() == 0
        assert (logits.grad[read_mask()].abs().sum(-1) > 0).all(), "every response token counts"
        found.append((loss.item(), logits.grad.clone()))
    assert found[0][0] == found[1][0] == found[2][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][1], found[2][1])


def test_metrics_and_means_by_hand() -> None:
    # Uniform logits: every token costs log 12. Chosen 4 tokens, rejected 2; the reference is the policy but 1
    # nat below it on the chosen response.
    token = -torch.tensor(12.0).log().item()
    reference = PairLogprobs(torch.tensor([4 * token - 1]), torch.tensor([2 * token]))
    model: Any = FixedLogits(torch.zeros(2, 7, VOCABULARY))
    options = {"beta": 0.5, "sft_coefficient": 0.1}
    loss, metrics = objective_of(PAIRS[:1], reference, **options).losses(model, [0])
    expected = torch.nn.functional.softplus(torch.tensor(-0.5)).item() - 0.1 * token
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "accuracy": 1,
            "gap": 0.5,
            "reward_chosen": 0.5,
            "reward_rejected": 0,
            "logprobs_chosen": 4 * token,
            "logprobs_rejected": 2 * token,
        },
        abs=1e-5,
    )
    options["length_normalised"] = True  # the nat is then a quarter of one for each of the four tokens
    loss, metrics = objective_of(PAIRS[:1], reference, **options).losses(model, [0])
    expected = torch.nn.functional.softplus(torch.tensor(-0.125)).item() - 0.1 * token
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert metrics["reward_chosen"].item() == pytest.approx(0.125, abs=1e-5)
    assert metrics["logprobs_chosen"].item() == pytest.approx(4 * token, abs=1e-5)


MODEL = tiny_llama(VOCABULARY)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_neither_padding_nor_the_order_of_rows_changes_a_loss(data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=2, max_size=5))
    pairs = [EncodedPair(str(k), *ids, True, True) for k, ids in enumerate(drawn)]
    order = data.draw(st.permutations(range(len(pairs))))
    objective = objective_of(pairs, zeros(len(pairs)), sft_coefficient=0.2, length_normalised=True)
    with torch.no_grad():
        alone = sum(objective.losses(MODEL, [row])[0].item() for row in range(len(pairs)))
        for rows in (list(range(len(pairs))), order):
            together = objective.losses(MODEL, rows)[0].item()
            assert together / len(pairs) == pytest.approx(alone / len(pairs), abs=1e-6)


def test_a_batch_of_eight_trains_like_eight_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_policy(tmp_path / "base")
    inputs = {"policy": base, "reference": base, "data": write_pairs(tmp_path / "easy.parquet", 16)}
    config = DPOStage(learning_rate=1e-3, batch_pairs=8)
    train_dpo(task_of(config, tmp_path / "whole", inputs), RecordingReporter())
    calls = []
    monkeypatch.setattr("mpo.dpo.objective.tokens_at_once", lambda *sizes: calls.append(sizes) or 1)
    train_dpo(task_of(config, tmp_path / "parts", inputs), RecordingReporter())
    assert calls
    parts, start = load_policy(tmp_path / "parts" / "model").state_dict(), load_policy(base).state_dict()
    for name, weight in load_policy(tmp_path / "whole" / "model").state_dict().items():
        torch.testing.assert_close(parts[name], weight, atol=2e-5, rtol=0)
        assert (weight - start[name]).abs().max() > 1e-4, name


def test_the_reference_s_numbers_are_the_policy_s_own_where_they_are_one_model() -> None:
    pairs = [EncodedPair(str(k), [1, k], [k, 5, EOS], [6], True, False) for k in range(3, 9)]
    objective = objective_of(pairs, pair_logprobs(MODEL, pairs, PAD))
    loss, metrics = objective.losses(MODEL, range(6))
    assert loss.item() / 6 == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert metrics["gap"].item() == pytest.approx(0, abs=1e-6)
