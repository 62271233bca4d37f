"""Trains the same worlds by both engines, and writes whether they come to the same, and what they take.

python -m experiments.gold_world.engines [--seeds 5] [--out .gold_world/engines] [--docs PAGE] [--small]

A world of a seed is trained by both at the same time, each in a process of one thread, so that what else the
machine does hits both alike. Interrupted, it goes on from where it was; but then times are of unlike moments.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.load_page import Conditions, spread, write_page_section
from experiments.gold_world.findings import LABELS, gold, interval, with_interval
from experiments.gold_world.seed import SECONDS, SeedResult, run_seed, stage_seconds
from experiments.gold_world.settings import ARMS, MEASURED, SMALL, Settings

COMMAND = "python -m experiments.gold_world.engines"
HEADING = "## The same worlds by both engines"
ENGINES = ("native", "trl")
TIMED = {"reward models, folds and whole": ("fold_", "reward_model"), "DPO, on easy and on all": ("dpo_",)}
"""What both engines train: beginnings of the stages' names."""

Results = Mapping[str, Sequence[SeedResult]]


def train(settings: Settings, seeds: int, out: Path) -> Results:
    """Results by engine, in the order of the seeds."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(ENGINES), os.cpu_count() or 1), mp_context=context) as pool:
        waiting = [
            (engine, pool.submit(run_seed, replace(settings, engine=engine), seed, out / engine / str(seed)))
            for seed in range(seeds)
            for engine in ENGINES
        ]
        done = [(engine, future.result()) for engine, future in waiting]
    return {engine: [result for by, result in done if by == engine] for engine in ENGINES}


def gold_rows(results: Results) -> list[list[str]]:
    """A row an arm: both engines' gold rewards, and their difference, world by world."""
    rows = []
    for arm in ARMS:
        ours, theirs = ([gold(result, arm) for result in results[engine]] for engine in ENGINES)
        apart = [a - b for a, b in zip(ours, theirs, strict=True)]
        low, high = interval(apart)
        says = "no difference shown" if low <= 0 <= high else "DIFFERENT"
        rows.append([LABELS[arm], *map(with_interval, (ours, theirs, apart)), says])
    return rows


def second_rows(seconds: Mapping[str, Sequence[Mapping[str, float]]]) -> list[list[str]]:
    """A row a kind of stage: both engines' seconds, medians over the worlds, and trl's over native's."""
    rows = []
    for title, beginnings in TIMED.items():
        ours, theirs = (
            [sum(s for name, s in world.items() if name.startswith(beginnings)) for world in seconds[engine]]
            for engine in ENGINES
        )
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        rows.append([f"seconds of {title}", spread(ours, 1), spread(theirs, 1), f"{spread(ratios)}", ""])
    return rows


def main(arguments: Sequence[str]) -> int:
    """Train, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="worlds, 2 to 10 (default 5)")
    parser.add_argument(
        "--out", type=Path, default=Path(".gold_world/engines"), help="where the work is kept"
    )
    parser.add_argument("--docs", type=Path, help="page of benchmarks whose section to write anew")
    parser.add_argument("--small", action="store_true", help="worlds that show only that all of it runs")
    chosen = parser.parse_args(arguments)
    if not 2 <= chosen.seeds <= 10:
        parser.error("--seeds: an interval over seeds needs 2 to 10 of them")
    conditions = Conditions.now([COMMAND, *arguments])
    results = train(SMALL if chosen.small else MEASURED, chosen.seeds, chosen.out)
    seconds = {
        engine: [stage_seconds(chosen.out / engine / str(seed) / SECONDS) for seed in range(chosen.seeds)]
        for engine in ENGINES
    }
    rows = [*gold_rows(results), *second_rows(seconds)]
    for row in rows:
        print(" | ".join(row))
    if chosen.docs:
        said = (
            f"{conditions.machine()}. {chosen.seeds} worlds of docs/gold_world.md, each trained by both "
            "engines at the same time, a thread each; gold rewards with Student's 95 % intervals over the "
            "worlds, seconds as medians with the smallest and largest. SFT and PPO have no engine but ours."
        )
        columns = ["what", *ENGINES, "native − trl, or trl / native", ""]
        write_page_section(chosen.docs, HEADING, conditions.command, said, [columns, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
