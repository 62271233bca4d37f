"""What the demo prints of its findings."""

from pathlib import Path

import pytest
from rich.console import Console

from embedded.gold_report import DPO, MPO, SFT, gold_findings, tell_answers, tell_gaps, tell_gold
from mpo_client.cli.screen import Screen
from mpo_client.comparisons import Row
from mpo_client.jobs import JobReport
from mpo_client.reward_gaps import RewardGaps

PROMPT = "\n\nHuman: My kettle leaks.\n\nAssistant:"
STAGES = (SFT, DPO, MPO)
REPORT = JobReport.model_validate(
    {
        "gaps": {"accuracy": 0.74, "accuracy_ci95": [0.7, 0.78], "length_baseline": 0.4},
        "evaluation": {
            "models": [
                {"model": "sft", "kl": {}},
                {"model": "dpo", "kl": {"sft": {"mean": 4.25}}},
                {"model": "ppo", "kl": {"sft": {"mean": 6.5}, "dpo": {"mean": 2.0}}},
            ]
        },
    }
)
GAPS = RewardGaps.model_validate(
    {
        "job": "job_1",
        "pairs": 6,
        "bin_edges": [-1.0, 0.0, 1.0],
        "counts": [2, 4],
        "below": 0,
        "above": 0,
        "threshold": 0.0,
        "easy": 4,
        "difficult": 2,
        "dropped": 0,
        "scored_by": "cross_fit",
    }
)


def row(index: int, *texts: str) -> Row:
    responses = [{"model": f"job_1:{s}", "text": text} for s, text in zip(STAGES, texts, strict=True)]
    return Row.model_validate({"index": index, "prompt": PROMPT, "responses": responses})


ROWS = [row(n, " Noted.", " I am sorry.", " I am sorry. I will send a new kettle.") for n in range(30)]


@pytest.fixture
def screen() -> Screen:
    return Screen(console=Console(width=80, record=True, markup=False, highlight=False, emoji=False))


def said(screen: Screen) -> str:
    return screen.out.export_text()


def test_models_are_told_apart_by_gold_and_by_kl(screen: Screen) -> None:
    found = gold_findings(ROWS, STAGES, REPORT)
    assert [(each.model, each.mean) for each in found.means] == [(SFT, 0.0), (DPO, 1.0), (MPO, 3.0)]
    tell_gold(screen, found)
    text = said(screen)
    assert "30 prompts" in text
    mpo = next(line for line in text.splitlines() if line.startswith("MPO "))
    assert mpo.split() == ["MPO", "+3.00", "+3.00", "to", "+3.00", "1.000", "0.886", "to", "1.000", "6.5"]
    assert "MPO against DPO on easy pairs: 30 won, 0 lost, 0 tied" in text
    assert text.rstrip().endswith("better.")


def test_accuracy_stands_beside_that_of_length_alone(screen: Screen, tmp_path: Path) -> None:
    tell_gaps(screen, GAPS, REPORT, tmp_path / "gaps.png")
    text = said(screen)
    assert "0.740   95 % interval 0.700 to 0.780" in text
    # A baseline of 0.4 for the longer response is 0.6 for the shorter one.
    assert "0.600" in text
    assert "easy 4, difficult 2, dropped 0" in text
    assert text.count("█") > 0


def test_answers_stand_side_by_side_within_the_screen(screen: Screen) -> None:
    tell_answers(screen, gold_findings(ROWS, STAGES, REPORT), STAGES, 1)
    lines = said(screen).splitlines()
    assert lines[0].startswith("  prompt | Human: My kettle leaks.")
    assert lines[3] == "     ppo | I am sorry. I will send a new kettle."
    assert all(len(line) <= 80 for line in lines)
