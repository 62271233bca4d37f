"""Whether a step costs the same however many pairs there are: reward models on 1,000 to 100,000 pairs.

python -m bench.data_growth --pairs FILE [--model DIR] [--sizes 1000 10000 100000] [--rounds 3] [--docs PAGE]

The file's first pairs, as many as the smallest size, over and over, under other ids. Each run is the whole
stage in a process of its own: what comes before the first step is told in seconds, then pairs a second of the
first 200 steps.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import examples
from bench.load_page import Conditions, spread, write_page_section
from mpo.config import RewardModelStage
from mpo.dataset_files import validate_file
from mpo.errors import StageInterrupted
from mpo.records import PreferencePair, read_pairs, write_rows
from mpo.reporter import SilentReporter, StageInput, StageTask

HEADING = "## A step as the data grow"
SIZES = (1_000, 10_000, 100_000)
STEPS, BATCH = 200, 16
WITHIN = 0.1


@dataclass(frozen=True)
class FirstSteps(SilentReporter):
    """Hears when each step has ended, and has the stage stop once there were enough: what follows the
    training goes through all pairs."""

    ended: list[float] = field(default_factory=list)

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """A step has ended."""
        self.ended.append(time.perf_counter())

    def should_stop(self) -> bool:
        """After the last step that is measured."""
        return len(self.ended) >= STEPS


def run_one(data: Path, model: Path) -> dict[str, float]:
    """One stage in this process: seconds before the first step has ended, pairs a second after it, memory."""
    from mpo.reward_model.train import train_reward_model

    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lengths = {"max_prompt_tokens": 128, "max_response_tokens": 96}
    config = RewardModelStage.model_validate({"batch_pairs": BATCH, "max_steps": STEPS + 1, **lengths})
    inputs = {"backbone": (StageInput("model", model),), "data": (StageInput("pairs", data),)}
    steps = FirstSteps()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with suppress(StageInterrupted):
            train_reward_model(StageTask(config, inputs, Path(folder), seed=0), steps)
    ended = steps.ended[:STEPS]
    return {
        "before": ended[0] - started,
        "pairs_per_second": (len(ended) - 1) * BATCH / (ended[-1] - ended[0]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - imports,
    }


def grown(pairs: Sequence[PreferencePair], size: int) -> Iterator[PreferencePair]:
    """So many pairs, each under an id of its own."""
    again = (replace(pair, id=f"{turn}-{pair.id}") for turn in count() for pair in pairs)
    return islice(again, size)


def measure(files: Mapping[int, Path], model: Path, rounds: int) -> dict[int, list[dict[str, float]]]:
    """The runs by size, sizes in turn, each round in the other order."""
    found: dict[int, list[dict[str, float]]] = {size: [] for size in files}
    for number in range(rounds):
        sizes = list(files)
        for size in sizes if number % 2 == 0 else sizes[::-1]:
            command = [sys.executable, "-m", "bench.data_growth", "--one", "--model", str(model)]
            done = subprocess.run([*command, "--pairs", str(files[size])], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[size].append(json.loads(done.stdout.splitlines()[-1]))
            print(size, found[size][-1], flush=True)
    return found


def table(found: Mapping[int, Sequence[Mapping[str, float]]]) -> tuple[list[list[str]], float]:
    """A row for each size, and how far from 1 the ratio that is farthest from it lies."""
    smallest, rows, farthest = found[min(found)], [], 0.0
    for size, runs in found.items():
        pairs = zip(runs, smallest, strict=True)
        ratios = [run["pairs_per_second"] / first["pairs_per_second"] for run, first in pairs]
        farthest = max(farthest, abs(statistics.median(ratios) - 1))
        middle: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append(
            [
                f"{size:,}",
                f"{middle['pairs_per_second']:.1f}",
                spread(ratios),
                f"{middle['before']:.1f}",
                f"{1000 * middle['before'] / size:.2f}",
                f"{middle['memory']:.0f}",
            ]
        )
    return rows, farthest


def write(page: Path, conditions: Conditions, rows: list[list[str]], farthest: float, rounds: int) -> None:
    """The section of the page."""
    word = "reached" if farthest <= WITHIN else "**missed**"
    said = (
        f"{conditions.machine()}. The stage `reward_model`, its first {STEPS} steps of {BATCH} pairs, "
        f"{rounds} rounds in turn, each run a process of its own. The rate within {WITHIN:.0%} of the "
        f"smallest file's: {word} ({farthest:.0%} apart at most)."
    )
    columns = ["pairs", "pairs/s", "over the smallest's", "before the first step, s", "ms a pair", "MiB"]
    write_page_section(page, HEADING, conditions.command, said, [columns, *rows])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.data_growth")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path(examples.__file__).parent / "tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(run_one(chosen.pairs, chosen.model)))
        return 0
    conditions = Conditions.now(["python -m bench.data_growth", *arguments])
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "all.parquet"
        validate_file(chosen.pairs, whole)
        # The same pairs over and over: of others the lengths would differ too, and with them the rate.
        pairs = read_pairs(whole)[: min(chosen.sizes)]
        files = {size: Path(folder) / f"{size}.parquet" for size in sorted(chosen.sizes)}
        for size, file in files.items():
            write_rows(file, grown(pairs, size))
        rows, farthest = table(measure(files, chosen.model, chosen.rounds))
    for row in rows:
        print(" | ".join(row))
    if chosen.docs:
        write(chosen.docs, conditions, rows, farthest, chosen.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
