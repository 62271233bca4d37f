"""What `bench.training` makes of its sides' lines: ratios, the protocol's repetitions, its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import training
from bench.equal_work import too_far_apart
from bench.load_page import Conditions
from bench.training import TRIES, result, undisturbed
from bench.training_page import write_training
from bench.training_sides import OTHERS, Line, Sides

ASKED = {
    *("stage", "precision", "ours", "theirs_default", "theirs_tuned", "ratio_default", "ratio_tuned"),
    *("memory_ratio_default", "loss_abs_diff"),
}
ALIKE = {"loss_abs_diff": 1e-6, "held_out_loss_abs_diff": 0.0, "held_out_accuracy_abs_diff": 0.0}
ROLLOUT = {"loss_abs_diff": 1e-6, "scores_abs_diff": 1e-6, "advantages_abs_diff": 1e-6}


def line(seconds: float, memory: float = 600.0, **more: Any) -> Line:
    settings, metrics = {"threads": 2}, {"held_out_accuracy": 0.5, "mean_reward_last": 0.1, "kl_last": 0.2}
    numbers = {"pairs_per_second": 16 / seconds, "peak_rss_mb": memory, "imports_mb": 400.0}
    rates = {"useful_gflops": 30.0, "matmul_gflops": 100.0, "had_company": False, "version": "made up"}
    timed = {"seconds": seconds, "cpu_seconds": 2 * seconds}
    return {**timed, **numbers, **rates, "settings": settings, "metrics": metrics, **more}


def lines(name: str, ours: float, default: float, tuned: float) -> dict[str, list[Line]]:
    sides = {"ours": line(ours, 500), "theirs_default": line(default, 1400), "theirs_tuned": line(tuned)}
    sides |= {other: line(ours) for other in OTHERS.get(name, {})}
    return {
        side: [each | {"seconds": each["seconds"] * n} for n in (1, 2, 3)] for side, each in sides.items()
    }


@pytest.mark.parametrize(("name", "apart"), [("rm", ALIKE), ("dpo", ALIKE), ("ppo", ROLLOUT)])
def test_the_file_holds_ratios_of_theirs_over_ours(name: str, apart: dict[str, float]) -> None:
    found = json.loads(json.dumps(result(name, lines(name, 2, 10, 5), apart, "seconds")))
    assert found.keys() >= ASKED | apart.keys()
    assert (found["stage"], found["precision"], found["loss_abs_diff"]) == (name, "fp32", 1e-6)
    assert (found["ratio_default"], found["ratio_tuned"]) == (5, 2.5)
    assert found["memory_ratio_default"] == pytest.approx(0.1)
    assert found["ours"]["seconds"] == 4, "the middle one of three"
    assert found["runs_with_company"] == 0


@pytest.mark.parametrize("which", [*ALIKE, *ROLLOUT])
@pytest.mark.parametrize("number", [0.2, float("nan")])
def test_sides_that_differ_in_anything_are_different_trainings(which: str, number: float) -> None:
    apart = ALIKE if which in ALIKE else ROLLOUT
    assert too_far_apart(apart, 64) == []
    [told] = too_far_apart({**apart, which: number}, 64)
    assert told.startswith(which)


def test_held_out_accuracies_may_differ_by_one_pair() -> None:
    assert too_far_apart({**ALIKE, "held_out_accuracy_abs_diff": 1 / 64}, 64) == []
    assert too_far_apart({**ALIKE, "held_out_accuracy_abs_diff": 2 / 64}, 64) != []


def test_different_trainings_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    monkeypatch.setattr(training, "differences", lambda *_: ALIKE | {"loss_abs_diff": 2e-4})
    monkeypatch.setattr(training, "measure", lambda *_: pytest.fail("it was timed"))
    out = tmp_path / "out.json"
    asked = ["--stage", "rm", "--pairs", "p", "--model", str(tmp_path), "--json", str(out)]
    assert training.main(asked) == 1
    assert "different trainings" in capsys.readouterr().err
    assert not out.exists()


def sides_of(monkeypatch: pytest.MonkeyPatch, threads: int, rates: list[tuple[float, float]]) -> Sides:
    """Sides whose yardstick tells these rates, one after another."""
    told = iter(rates)
    monkeypatch.setattr(Sides, "yardstick", lambda _self: next(told))
    return Sides("rm", Path("pairs"), Path("models"), 8, threads, Path("environments"))


def runs(*each: Line) -> Callable[[], Line]:
    told = iter(each)
    return lambda: dict(next(told))


QUIET, SHARED = (100.0, 95.0), (100.0, 70.0)
BUSY, KEPT_WAITING = line(1, cpu_seconds=1.9), line(1, cpu_seconds=1.7)


def test_a_run_that_had_company_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = sides_of(monkeypatch, 0, [QUIET, SHARED, QUIET])
    found = undisturbed(sides, runs(KEPT_WAITING, BUSY, BUSY | {"seconds": 0.99}), theirs=True)
    assert (found["seconds"], found["had_company"], found["matmul_gflops"]) == (0.99, False, 100)


def test_a_run_that_never_was_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = sides_of(monkeypatch, 0, [SHARED] * TRIES)
    found = undisturbed(sides, runs(*[BUSY] * TRIES), theirs=True)
    assert found["had_company"]
    assert (
        result("rm", {**lines("rm", 2, 10, 5), "ours": [found] * 3}, ALIKE, "seconds")["runs_with_company"]
        == 3
    )


def test_ours_may_wait_and_one_thread_is_never_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not undisturbed(sides_of(monkeypatch, 0, [QUIET]), runs(KEPT_WAITING), theirs=False)["had_company"]
    assert not undisturbed(sides_of(monkeypatch, 1, [SHARED]), runs(KEPT_WAITING), theirs=True)["had_company"]


@pytest.mark.parametrize(
    ("tuned", "word"), [(5.0, "goal reached"), (3.0, "floor reached, goal missed"), (2.0, "**missed**")]
)
def test_the_page_says_what_was_reached(tuned: float, word: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n")
    write_training(
        page, Conditions.now(["command"]), result("rm", lines("rm", 2, 10, tuned), ALIKE, "seconds")
    )
    written = " ".join(page.read_text().split())
    assert f"Against tuned: {tuned / 2:.2f} (floor 1.4, goal 2): {word}." in written
    assert "Useful work: 30% of the matmul peak (at least 40%): **missed**." in written
