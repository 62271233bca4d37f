import pytest
import torch

from mpo.generation import SampledResponse
from mpo.ppo.loss import OldTokens
from mpo.ppo.metrics import explained_variance, rollout_metrics
from mpo.ppo.rollouts import RolloutTokens

MASK = torch.tensor([[True, True], [True, False]])


def test_explained_variance_is_1_for_exact_values_and_0_for_constant_ones() -> None:
    returns = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(torch.full((2, 2), 7.0), returns, MASK) == 0.0
    # Residuals -1, 0, 1 vary as much as the returns 1, 2, 3.
    assert explained_variance(torch.tensor([[2.0, 2.0], [2.0, 0.0]]), returns, MASK) == 0.0
    # Residuals ½, 0, -½: a quarter of the variance is left.
    assert explained_variance(torch.tensor([[0.5, 2.0], [3.5, 0.0]]), returns, MASK) == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones(2, 2), MASK) == 0.0  # nothing to explain


def test_kls_are_a_response_s_and_entropy_is_a_token_s() -> None:
    zeros = torch.zeros(2, 2)
    tokens = RolloutTokens(
        response_mask=MASK,
        logprobs=torch.tensor([[-1.0, -1.0], [-2.0, 0.0]]),
        entropies=torch.tensor([[1.0, 2.0], [6.0, 0.0]]),
        reference_logprobs=torch.tensor([[-1.5, -1.0], [-3.0, 0.0]]),
        sft_logprobs=torch.tensor([[-0.5, -1.0], [-2.0, 0.0]]),
        values=zeros,
    )
    responses = [SampledResponse([5, 6], "length"), SampledResponse([7], "stop")]
    old = OldTokens(tokens.logprobs, zeros, zeros, zeros, MASK)
    metrics = rollout_metrics(responses, torch.tensor([2.0, 5.0]), tokens, old)
    assert metrics == {
        "reward": 3.5,
        "kl": 0.75,
        "kl_to_sft": -0.25,
        "entropy": 3.0,
        "explained_variance": 0.0,
        "response_tokens": 1.5,
        "eos_rate": 0.5,
    }
