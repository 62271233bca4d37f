"""The losses of Direct Preference Optimization: pure functions of log-probabilities."""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

DPOLoss = Literal["sigmoid", "ipo", "hinge", "robust", "cdpo"]


class PairLogprobs(NamedTuple):
    """Log-probabilities of the two responses of each pair, summed over tokens, in nats, each (batch,)."""

    chosen: Tensor
    rejected: Tensor


class PairTokens(NamedTuple):
    """Tokens of the two responses of each pair, terminator included, each (batch,); none is 0."""

    chosen: Tensor
    rejected: Tensor


def token_means(logprobs: PairLogprobs, tokens: PairTokens) -> PairLogprobs:
    """Log-probabilities as means over a response's tokens."""
    return PairLogprobs(logprobs.chosen / tokens.chosen, logprobs.rejected / tokens.rejected)


def implicit_rewards(policy: PairLogprobs, reference: PairLogprobs, beta: float) -> PairLogprobs:
    """β·(log π - log π_ref) of either response: the reward that the policy is optimal for, up to a term that
    depends on the prompt alone. Rafailov et al. 2023 (arXiv 2305.18290), eq. 5."""
    return PairLogprobs(
        beta * (policy.chosen - reference.chosen), beta * (policy.rejected - reference.rejected)
    )


def dpo_loss(
    policy: PairLogprobs,
    reference: PairLogprobs,
    beta: float,
    loss: DPOLoss = "sigmoid",
    flip_rate: float = 0.0,
) -> Tensor:
    """Loss of each pair, (batch,), from h, the log-ratio of the chosen response minus the rejected one's.

    beta: inverse temperature of the implicit reward, per nat. flip_rate: ε, the share of labels that are
    taken to be wrong, below 1/2.
    sigmoid: -log σ(βh). Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.
    ipo: (h - 1/(2β))², β being the paper's τ. Azar et al. 2023 (arXiv 2310.12036), eq. 17. The paper's h is
    of whole responses; as TRL does, which has it from the paper's authors, take log-probabilities here that
    are means over tokens, or the loss grows with the square of the length.
    hinge: max(0, 1 - βh). Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), with log-ratios to the reference in
    place of log-probabilities, and 1/β as its margin.
    robust: (ε·log σ(-βh) - (1-ε)·log σ(βh)) / (1-2ε), unbiased where a share ε of the labels is flipped.
    Chowdhury et al. 2024 (rDPO, arXiv 2403.00409).
    cdpo: -(1-ε)·log σ(βh) - ε·log σ(-βh), conservative DPO: smoothed labels, so that h stays finite.
    """
    difference = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    if loss == "ipo":
        return (difference - 1 / (2 * beta)).square()
    if loss == "hinge":
        return F.relu(1 - beta * difference)
    as_labelled, as_flipped = -F.logsigmoid(beta * difference), -F.logsigmoid(-beta * difference)
    if loss == "robust":
        return ((1 - flip_rate) * as_labelled - flip_rate * as_flipped) / (1 - 2 * flip_rate)
    if loss == "cdpo":
        return (1 - flip_rate) * as_labelled + flip_rate * as_flipped
    return as_labelled
