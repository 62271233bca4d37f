"""The page about a run on a real model: every figure is read from the job."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from mpo_client.comparisons import Comparison
from mpo_client.jobs import Job, JobReport, Stage
from mpo_client.reward_gaps import RewardGaps

BAR = 40
"""Characters of the histogram's longest bar."""


class Mean(BaseModel):
    mean: float
    ci95: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.ci95[0]:.2f} to {self.ci95[1]:.2f})"


class EvaluatedModel(BaseModel):
    model: str
    reward: Mean
    training_reward: Mean | None = None
    response_tokens: Mean
    eos_rate: float
    kl: dict[str, Mean] = {}


class Rate(BaseModel):
    model_a: str
    model_b: str
    wins: int
    losses: int
    ties: int
    win_rate: float
    ci95: tuple[float, float]
    length_controlled: float | None = None


class Judge(BaseModel):
    accuracy: float
    accuracy_ci95: tuple[float, float]
    pairs: int


class Evaluated(BaseModel):
    prompts: int
    judge: Judge
    judge_independence: Literal["other_seed", "other_data", "llm", "gold"]
    models: list[EvaluatedModel]
    win_rates: list[Rate]


@dataclass(frozen=True)
class Findings:
    """What the run left. pairs: the file's name; used: pairs uploaded; seconds: from upload to the end."""

    command: str
    model: str
    pairs: str
    sources: Sequence[str]
    used: int
    job: Job
    report: JobReport
    gaps: RewardGaps
    comparison: Comparison
    temperature: float
    seconds: float


def page(found: Findings) -> str:
    """The page, in Markdown."""
    evaluated = Evaluated.model_validate(found.report.evaluation)
    parts = [_beginning(found), _models(evaluated), _rates(evaluated), _gaps(found.gaps)]
    return "\n\n".join([*parts, _samples(found.comparison, found.temperature), _stages(found.job)]) + "\n"


def hardware() -> str:
    """The processor's name, the cores that this process may use, and the memory."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    name = named[1] if named else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {cores} cores, {memory:.0f} GiB"


def _beginning(found: Findings) -> str:
    source = f" ({', '.join(f'`{name}`' for name in found.sources)})" if found.sources else ""
    return (
        f"# A real run: {found.model}\n\n"
        f"The whole job, on the first {found.used} pairs of `{found.pairs}`{source}: "
        f"{found.seconds / 60:.0f} minutes from upload to the last stage, on {hardware()}. "
        "This page was written by\n\n"
        f"    {found.command}\n\n"
        "It shows that the whole way works on a pretrained model and people's own preferences, and how long "
        "it takes; not how well the method does: so few pairs and prompts decide nothing. No figure here is "
        "to be compared with the paper's."
    )


def _models(evaluated: Evaluated) -> str:
    judge = evaluated.judge
    rows = [
        [m.model, str(m.reward), str(m.training_reward or ""), f"{m.response_tokens.mean:.0f}",
         f"{m.eos_rate:.2f}", *(f"{m.kl[base].mean:.1f}" if base in m.kl else "" for base in ("sft", "dpo"))]
        for m in evaluated.models
    ]  # fmt: skip
    head = [
        "model",
        "judge's reward",
        "reward model's",
        "tokens",
        "ended",
        "KL to sft",
        "KL to dpo",
    ]
    return (
        f"## Models\n\nMeans over {evaluated.prompts} held-out prompts, with 95 % intervals; "
        f"ended: the share that stopped by itself; KL in nats a response. The "
        "judge is a reward model of another seed, which trained none of the models; on "
        f"{judge.pairs} held-out pairs it is right in {judge.accuracy:.2f} ({judge.accuracy_ci95[0]:.2f} to "
        f"{judge.accuracy_ci95[1]:.2f}). It learned from the same labels as the reward model and shares "
        "their noise.\n\n" + _table(head, rows)
    )


def _rates(evaluated: Evaluated) -> str:
    rows = [
        [r.model_a, r.model_b, f"{r.wins}/{r.losses}/{r.ties}", f"{r.win_rate:.2f}",
         f"{r.ci95[0]:.2f} to {r.ci95[1]:.2f}",
         "" if r.length_controlled is None else f"{r.length_controlled:.2f}"]
        for r in evaluated.win_rates
    ]  # fmt: skip
    won = [r for r in evaluated.win_rates if not r.ci95[0] <= 0.5 <= r.ci95[1]]
    said = "; ".join(f"{r.model_a} against {r.model_b}: {r.win_rate:.2f}" for r in won)
    verdict = f"Intervals that exclude ½: {said}." if won else "Every interval includes ½: nobody has won."
    head = ["model", "against", "won/lost/tied", "win rate", "95 % interval", "at equal length"]
    return f"## Win rates\n\nBy the judge. {verdict}\n\n" + _table(head, rows)


def _gaps(gaps: RewardGaps) -> str:
    assert gaps.accuracy_ci95 is not None, "a job that has succeeded has scored pairs"
    low, high = gaps.accuracy_ci95
    most = max(gaps.counts) or 1
    bars = [
        f"    {start:+7.2f} | {'#' * round(BAR * count / most)} {count or ''}".rstrip()
        for start, count in zip(gaps.bin_edges, gaps.counts, strict=False)
    ]
    threshold = "" if gaps.threshold is None else f" at a gap of {gaps.threshold:.3f}"
    weak = " The gate found the reward model weak, and was told to warn." if low <= 0.5 <= high else ""
    return (
        f"## Reward gaps\n\n{gaps.pairs} training pairs, each scored by a reward model that has not seen it: "
        f"chosen above rejected in {gaps.accuracy:.2f} ({low:.2f} to {high:.2f}), mean gap {gaps.mean:.3f}, "
        f"standard deviation {gaps.std:.3f}; split{threshold} into {gaps.easy} easy and {gaps.difficult} "
        f"difficult pairs, {gaps.dropped} dropped.{weak} Each line is a bin, named by its lower end.\n\n"
        + "\n".join(bars)
    )


def _samples(comparison: Comparison, temperature: float) -> str:
    parts = [f"## Side by side\n\nDrawn with one seed, at temperature {temperature:g}; scored by the judge."]
    for row in comparison.rows:
        answers = [
            [(answer.model or "?").rpartition(":")[2], "" if answer.score is None else f"{answer.score:+.2f}",
             _cell(answer.text)]
            for answer in row.responses
        ]  # fmt: skip
        parts.append(f"> {_cell(str(row.prompt))}\n\n" + _table(["model", "score", "response"], answers))
    return "\n\n".join(parts)


def _stages(job: Job) -> str:
    rows = [[stage.name, "cached" if stage.cached else _seconds(stage)] for stage in job.stages]
    return "## Seconds by stage\n\n" + _table(["stage", "seconds"], rows)


def _seconds(stage: Stage) -> str:
    if stage.started_at is None or stage.finished_at is None:
        return ""
    return str(stage.finished_at - stage.started_at)


def _cell(text: str) -> str:
    """Text within a table's cell or a quotation: one line, nothing in it read as markup."""
    return re.sub(r"([\\|<>*_`#\[\]])", r"\\\1", " ".join(text.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
