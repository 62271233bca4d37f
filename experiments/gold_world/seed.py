"""One world: pairs with labels of a known noise, all arms trained on them, and what the gold reward says."""

import io
import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import examples
from examples.pairs import held_out_prompts, sample_pairs, write_pairs
from experiments.gold_world.measure import Answers, measure
from experiments.gold_world.settings import ARMS, Settings, job_spec
from mpo.pipeline import run_plan
from mpo.reporter import Reporter, StageTask
from mpo.run_plan import RunRequest
from mpo.stages import run_stage

BASE = Path(examples.__file__).parent / "tiny"
PAIR_SEED, PROMPT_SEED = 1000, 9000
"""Apart from each other and from the seeds that the shipped examples were made with."""

RESULT, SECONDS = "result.json", "seconds.json"
"""Beside each other in a world's folder: its result, and what each stage of it took."""


@dataclass(frozen=True)
class SeedResult:
    """What came out of one world.

    wrong_labels: share of labels against the gold reward. accuracy: out of fold, against the noisy labels.
    ppo_reward, ppo_kl: of each iteration, by the reward model and to the DPO model.
    """

    seed: int
    pairs: int
    label_scale: float
    wrong_labels: float
    accuracy: float
    accuracy_ci95: tuple[float, float]
    length_baseline: float
    easy: int
    difficult: int
    ppo_reward: list[float]
    ppo_kl: list[float]
    arms: dict[str, Answers]


class _Prefixed(io.TextIOBase):
    """Standard output, with the seed before each line: several worlds print at once."""

    def __init__(self, seed: int) -> None:
        self.prefix, self.line = f"seed {seed} │ ", ""

    def write(self, text: str) -> int:
        *whole, self.line = (self.line + text).split("\n")
        for line in whole:
            sys.stdout.write(f"{self.prefix}{line}\n")
        sys.stdout.flush()
        return len(text)


def run_seed(settings: Settings, seed: int, out: Path) -> SeedResult:
    """Makes a world in a folder, trains all arms there and measures them. What is done already is kept."""
    torch.set_num_threads(1)  # another world runs beside this one
    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    console = cast(TextIO, _Prefixed(seed))
    facts = _make_pairs(settings, seed, out, console)
    request = RunRequest(
        job_spec(settings, seed),
        out / "pairs.jsonl.gz",
        BASE,
        out / "run",
        accept_weak=True,
        console=console,
        perform=partial(_timed, out / SECONDS),
    )
    if pause := run_plan(request):
        raise RuntimeError(pause)
    result = _result(settings, seed, out, float(facts["wrong_labels"]), console)
    (out / RESULT).write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")
    return result


def _timed(file: Path, task: StageTask, reporter: Reporter) -> None:
    """Runs a stage, and notes in the file what it took; what a stage that was stopped took is added to."""
    began = time.monotonic()
    try:
        run_stage(task, reporter)
    finally:
        seconds = stage_seconds(file)
        seconds[task.output.name] = seconds.get(task.output.name, 0.0) + time.monotonic() - began
        file.write_text(json.dumps(seconds), encoding="utf-8")


def stage_seconds(file: Path) -> dict[str, float]:
    """Seconds by stage, as far as they are known."""
    seconds: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return seconds


def _make_pairs(settings: Settings, seed: int, out: Path, console: TextIO) -> dict[str, float]:
    made = out / "pairs.json"
    if not made.exists():
        print(f"sampling {settings.pairs} pairs", file=console)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE, padding_side="left")
        model = LlamaForCausalLM.from_pretrained(BASE).eval()
        labelled = sample_pairs(
            model, tokenizer, PAIR_SEED + seed, settings.pairs, label_scale=settings.label_scale
        )
        write_pairs(out / "pairs.jsonl.gz", labelled.pairs)
        made.write_text(json.dumps({"wrong_labels": labelled.noisy_share}))
    facts: dict[str, float] = json.loads(made.read_text())
    return facts


def _result(settings: Settings, seed: int, out: Path, wrong_labels: float, console: TextIO) -> SeedResult:
    run = out / "run"
    score, split = (json.loads((run / name / "summary.json").read_text()) for name in ("score", "split"))
    ppo = [json.loads(line) for line in (run / "mpo" / "metrics.jsonl").read_text().splitlines()]
    prompts = [row["prompt"] for row in held_out_prompts(PROMPT_SEED, settings.prompts)]
    lengths = settings.max_prompt_tokens, settings.max_new_tokens
    arms: dict[str, Answers] = {}
    for arm in ARMS:
        arms[arm] = measure(run / arm / "model", run / "sft" / "model", prompts, lengths, seed)
        gold = sum(arms[arm].gold) / len(prompts)
        print(f"{arm}: gold reward {gold:.2f}, KL to SFT {arms[arm].kl:.2f}", file=console)
    return SeedResult(
        seed=seed,
        pairs=score["pairs"],
        label_scale=settings.label_scale,
        wrong_labels=wrong_labels,
        accuracy=score["accuracy"],
        accuracy_ci95=tuple(score["accuracy_ci95"]),
        length_baseline=score["length_baseline"],
        easy=split["easy"],
        difficult=split["difficult"],
        ppo_reward=[line["reward"] for line in ppo],
        ppo_kl=[line["kl"] for line in ppo],
        arms=arms,
    )
