import torch
from torch.testing import assert_close

from mpo.ppo.rewards import penalise_cut_responses, token_rewards


def test_score_lands_on_the_last_token_and_kl_on_every_token() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -1.5], [-0.5, -9.0, -9.0]])
    reference = torch.tensor([[-1.5, -1.0, -1.5], [-1.0, 5.0, 5.0]])
    rewards = token_rewards(torch.tensor([3.0, -2.0]), logprobs, reference, mask, kl_coefficient=0.1)
    assert_close(rewards, torch.tensor([[-0.05, 0.1, 3.0], [-2.05, 0.0, 0.0]]))


def test_only_a_cut_response_loses_the_penalty() -> None:
    scores = penalise_cut_responses(torch.tensor([0.5, 0.5]), torch.tensor([True, False]), 1.0)
    assert scores.tolist() == [-0.5, 0.5]
