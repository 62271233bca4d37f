"""PPO reaches π* ∝ π_ref · exp(r / β) where every response can be enumerated."""

import pytest

from mpo.config import PPOStage
from mpo.ppo.iteration import iterate
from tests.mpo.ppo.world import (
    all_responses,
    best_policy,
    response_logprobs_of,
    total_variation,
    training_of,
)


def distances(longest: int, iterations: int, critic: str) -> tuple[float, float]:
    """Total variation from the reference, and from the trained policy, to the optimum."""
    config = PPOStage.model_validate(
        {
            "learning_rate": 5e-3,
            "kl_coefficient": 0.5,
            "rollout_prompts": 64,
            "episodes": 64 * iterations,
            "mini_batches": 2,
            "epochs": 2,
            "max_new_tokens": longest,
            "critic": critic,
        }
    )
    training, responses = training_of(config), all_responses(longest)
    best = best_policy(training, responses)
    reference = response_logprobs_of(training.networks.reference, responses).exp()
    assert float(reference.sum()) == pytest.approx(1, abs=1e-5)  # the responses are all that there are
    while training.iteration < len(training.counts):
        assert iterate(training, lambda: False) is not None
    reached = response_logprobs_of(training.networks.policy, responses).exp()
    return total_variation(reference, best), total_variation(reached, best)


def test_ppo_on_a_bandit_reaches_the_known_optimum() -> None:
    before, after = distances(1, 40, "separate")
    assert before > 0.25
    assert after < 0.03


@pytest.mark.parametrize("critic", ["separate", "shared_trunk"])
def test_ppo_with_two_steps_a_response_reaches_the_known_optimum(critic: str) -> None:
    before, after = distances(2, 60, critic)
    assert before > 0.3
    assert after < 0.05
