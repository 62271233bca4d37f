import pytest

from experiments.gold_world.findings import findings, interval, rise
from experiments.gold_world.measure import Answers
from experiments.gold_world.plot import plot
from experiments.gold_world.seed import SeedResult
from experiments.gold_world.settings import ARMS, SMALL


def world(seed: int, gold: dict[str, float], accuracy: float = 0.72, kl: float = 3.0) -> SeedResult:
    arms = {arm: Answers([gold[arm] - 0.5, gold[arm] + 0.5], kl=1.0, tokens=20.0, ended=1.0) for arm in ARMS}
    return SeedResult(
        seed=seed,
        pairs=100,
        label_scale=0.9,
        wrong_labels=0.2,
        accuracy=accuracy,
        accuracy_ci95=(accuracy - 0.05, accuracy + 0.05),
        length_baseline=0.6,
        easy=50,
        difficult=50,
        ppo_reward=[1.0, 1.1, 1.4, 1.5 + seed / 10],
        ppo_kl=[0.0, kl],
        arms=arms,
    )


GOLD = {"sft": 1.0, "dpo_easy": 2.0, "mpo": 2.5, "dpo_all": 2.4}


def worlds(count: int = 3, **facts: float) -> list[SeedResult]:
    """The arms differ by the same in each world, but for mpo, which is once better and once worse."""
    swings = [0.4, -0.4, 0.0]
    return [world(n, GOLD | {"mpo": 2.4 + swings[n]}, **facts) for n in range(count)]


def test_the_interval_over_seeds_is_students() -> None:
    # mean 2, standard deviation 1, three values: 2 ± 4.303 / √3
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    with pytest.raises(ValueError, match="two seeds"):
        interval([1.0])


def test_a_curve_rises_by_its_last_quarter_less_its_first() -> None:
    assert rise([0.0, 2.0, 5.0, 9.0, 9.0, 9.0, 10.0, 12.0]) == pytest.approx(11 - 1)
    assert rise([3.0]) == 0


def test_a_difference_is_claimed_only_where_its_interval_excludes_zero() -> None:
    page = findings(worlds(), SMALL, "a command")
    assert "| DPO on easy − SFT | 1.00 [1.00, 1.00] | higher |" in page
    # Differences 0.4, -0.4 and 0: standard deviation 0.4, so 0 ± 4.303 · 0.4 / √3.
    assert "| MPO (then PPO on difficult) − DPO on all | 0.00 [-0.99, 0.99] | no difference shown |" in page
    assert "Written by `a command`" in page


def test_an_empty_question_and_a_passed_limit_are_said_aloud() -> None:
    page = findings(worlds(accuracy=0.65, kl=99.0), SMALL, "a command")
    assert "0.70 is asked, so the question is EMPTY" in page
    assert f"99.00 nats a response at most, OVER `max_kl` {SMALL.max_kl:g}" in page
    fine = findings(worlds(), SMALL, "a command")
    assert "so the question is not empty" in fine
    assert "OVER" not in fine


def test_the_same_results_draw_the_same_bytes(tmp_path) -> None:  # noqa: ANN001
    plot(worlds(), tmp_path / "a.svg")
    plot(worlds(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "gold reward" in (tmp_path / "a.svg").read_text()
