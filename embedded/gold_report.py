"""What the demo tells once its job has succeeded: how reward models tell pairs apart, and models by gold."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from embedded.gold import GoldMean, GoldWins, gold_means, gold_rewards, gold_wins
from mpo_client.cli.charts import histogram
from mpo_client.cli.screen import Screen, plain, table
from mpo_client.comparisons import Row
from mpo_client.jobs import JobReport
from mpo_client.reward_gaps import RewardGaps

MPO, DPO, SFT = "ppo", "dpo", "sft"
_ABOUT_GOLD = """
Answers to {prompts} prompts that no model was trained on, by the gold reward: warm words, a concrete offer
and the right product count for an answer, rudeness and repetition against it, length counts nothing. Labels
of the pairs were drawn from it, with noise; no model has seen it. Gold is a mean over prompts, KL in nats a
response; ties are half a win.
"""
_LABEL = 8
_WIDTH = 110
NAMES = {SFT: "SFT", DPO: "DPO (easy)", MPO: "MPO"}
"""What the job's stages are called where models are told apart."""


class _Scored(BaseModel):
    """Of the stage `score`."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    length_baseline: float


class _Mean(BaseModel):
    mean: float


class _Evaluated(BaseModel):
    """A model of the stage `evaluate`. kl: by the model that it is to."""

    model: str
    kl: dict[str, _Mean]


class _Evaluation(BaseModel):
    models: list[_Evaluated]


@dataclass(frozen=True)
class GoldFindings:
    """Of the held-out prompts. kl: to SFT, in nats a response, by model; rows: the answers."""

    prompts: int
    means: list[GoldMean]
    wins: list[GoldWins]
    kl: dict[str, float]
    rows: Sequence[Row]

    def against(self, model: str, other: str) -> GoldWins:
        """How one model does against another."""
        return next(each for each in self.wins if (each.model, each.against) == (model, other))


def gold_findings(rows: Sequence[Row], models: Sequence[str], report: JobReport) -> GoldFindings:
    """rows: answers of `job_…:stage` in the order of `models`, the stages, one a prompt."""
    prompts = [str(row.prompt) for row in rows]
    answers = {stage: [row.responses[place].text for row in rows] for place, stage in enumerate(models)}
    rewards = gold_rewards(prompts, answers)
    evaluated = _Evaluation.model_validate(report.evaluation).models
    kl = {each.model: each.kl[SFT].mean for each in evaluated if SFT in each.kl}
    return GoldFindings(len(rows), gold_means(rewards), gold_wins(rewards), kl, rows)


def tell_gaps(screen: Screen, gaps: RewardGaps, report: JobReport, picture: Path) -> None:
    """The histogram, and how the reward models' accuracy stands to that of length alone."""
    scored = _Scored.model_validate(report.gaps)
    low, high = scored.accuracy_ci95
    by_length = max(scored.length_baseline, 1 - scored.length_baseline)
    scored_by = f"Reward gaps of {gaps.pairs} pairs, each scored by a reward model that has not seen it:"
    screen.show("", scored_by, "")
    screen.show(histogram(gaps, min(screen.out.width, _WIDTH)))
    screen.show(
        f"accuracy of the reward models   {scored.accuracy:.3f}   95 % interval {low:.3f} to {high:.3f}",
        f"accuracy of response length     {by_length:.3f}   preferring the longer, or the shorter, one",
        f"easy {gaps.easy}, difficult {gaps.difficult}, dropped {gaps.dropped}",
        f"the same as a picture: {picture}",
        "",
    )


def tell_gold(screen: Screen, found: GoldFindings) -> None:
    """Models by the preference that the labels were drawn from, which none of them has seen."""
    screen.show(_paragraph(screen, _ABOUT_GOLD.format(prompts=found.prompts)), "")
    head = ["model", "gold", "95 % interval", "beats SFT", "95 % interval", "KL to SFT"]
    rows: list[list[object]] = []
    for each in found.means:
        mean = [NAMES[each.model], f"{each.mean:+.2f}", f"{each.ci95[0]:+.2f} to {each.ci95[1]:+.2f}"]
        rows.append([*mean, *_rate(found, each.model), f"{found.kl.get(each.model, 0.0):.1f}"])
    mpo = found.against(MPO, DPO)
    against = (
        f"MPO against DPO on easy pairs: {mpo.wins} won, {mpo.losses} lost, {mpo.ties} tied; win rate "
        f"{mpo.rate:.3f}, 95 % interval {mpo.ci95[0]:.3f} to {mpo.ci95[1]:.3f}: {mpo.verdict}."
    )
    screen.show(table(head, rows), "", _paragraph(screen, against), "")


def tell_answers(screen: Screen, found: GoldFindings, models: Sequence[str], shown: int) -> None:
    """A few prompts with each model's answer below."""
    width = min(screen.out.width, _WIDTH)
    for row in found.rows[:shown]:
        screen.show(_labelled("prompt", str(row.prompt), width))
        for stage, response in zip(models, row.responses, strict=True):
            screen.show(_labelled(stage, response.text, width))
        screen.show("")


def _rate(found: GoldFindings, model: str) -> list[str]:
    if model == SFT:
        return ["", ""]
    wins = found.against(model, SFT)
    return [f"{wins.rate:.3f}", f"{wins.ci95[0]:.3f} to {wins.ci95[1]:.3f}"]


def _paragraph(screen: Screen, text: str) -> str:
    return textwrap.fill(text.strip(), min(screen.out.width, _WIDTH))


def _labelled(label: str, text: str, width: int) -> str:
    first, later = f"{label:>{_LABEL}} | ", f"{'':>{_LABEL}} | "
    one_line = plain(" ".join(text.split()))
    return textwrap.fill(one_line, width, initial_indent=first, subsequent_indent=later) or first
