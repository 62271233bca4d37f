import pytest

from mpo.config import KLController, PPOStage
from mpo.ppo.kl_controller import next_kl_coefficient

CONTROLLER = KLController(target=6.0, horizon=10_000)


@pytest.mark.parametrize(
    ("kl", "coefficient"),
    [
        (6.0, 0.05),  # on target
        (6.6, 0.05 * 1.001),  # 10 % too far, a hundredth of the horizon
        (5.4, 0.05 * 0.999),
        (60.0, 0.05 * 1.002),  # more than 20 % counts as 20 %
        (-3.0, 0.05 * 0.998),  # an estimate may be negative
    ],
)
def test_the_coefficient_follows_the_error(kl: float, coefficient: float) -> None:
    assert next_kl_coefficient(0.05, kl, 100, CONTROLLER) == pytest.approx(coefficient, rel=1e-12)


def test_a_horizon_of_episodes_far_above_the_target_raises_the_coefficient_by_about_e_to_a_fifth() -> None:
    coefficient = 1.0
    for _ in range(100):
        coefficient = next_kl_coefficient(coefficient, 100.0, 100, CONTROLLER)
    assert coefficient == pytest.approx(1.002**100, rel=1e-12)


def test_settings_with_which_the_coefficient_could_not_adapt_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot start at 0"):
        PPOStage(kl_coefficient=0, kl_controller=KLController())
    with pytest.raises(ValueError, match="fifth of rollout_prompts"):
        PPOStage(rollout_prompts=50, kl_controller=KLController(horizon=10))
    assert PPOStage(rollout_prompts=49, kl_controller=KLController(horizon=10)).kl_controller is not None
