"""What it costs a training to be watched: seconds within the reporter over seconds of the steps.

python -m bench.reporting --pairs FILE [--model DIR] [--rounds 3] [--docs PAGE]

A share of one and the same run, not the difference of two, which the machine's own swings would hide. A
reward model's steps of 16 pairs, once as `python -m mpo run` reports them, into a file and lines, once as
a worker's child does, through a pipe to a process that reads it. What a worker then does with it, it does
beside them.
"""

import argparse
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import examples
from bench.load_page import Conditions, write_page_section
from mpo.config import RewardModelStage
from mpo.dataset_files import validate_file
from mpo.errors import StageInterrupted
from mpo.reporter import Reporter, StageInput, StageTask
from mpo.run_folders import FolderReporter, StageFolder
from workers.child_main import PipeReporter

HEADING = "## What it costs to be watched"
STEPS, BATCH = 60, 16
MOST = 0.01
WAYS = {"folder": "a file, and lines", "pipe": "a pipe to the worker"}


class Timed:
    """Another reporter, and how long a training has waited for it. The training is stopped after `STEPS`."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.steps = reporter, 0
        self.seconds = self.began = self.ended = 0.0

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """As the other hears it; counted from the second step on, as the first holds what is done once."""
        started = time.perf_counter()
        self.reporter.progress(step, total_steps, metrics)
        ended = time.perf_counter()
        self.steps += 1
        self.began, self.ended = self.began or ended, ended
        self.seconds += ended - started if self.steps > 1 else 0.0

    def checkpoint_due(self) -> bool:
        """As the other says."""
        started = time.perf_counter()
        due = self.reporter.checkpoint_due()
        self.seconds += time.perf_counter() - started
        return due

    def should_stop(self) -> bool:
        """The other is asked, and after the last step that is measured it is time."""
        started = time.perf_counter()
        asked = self.reporter.should_stop()
        self.seconds += time.perf_counter() - started
        return asked or self.steps > STEPS

    def warn(self, message: str) -> None:
        """Not timed: there is none in a usual run."""
        self.reporter.warn(message)

    def checkpoint(self, folder: Path, step: int) -> None:
        """Not timed: it is what a user asks for by `checkpoint_seconds`."""


def run_one(way: str, data: Path, model: Path) -> dict[str, float]:
    """One training in this process."""
    from mpo.reward_model.train import train_reward_model

    lengths = {"max_prompt_tokens": 128, "max_response_tokens": 96}
    config = RewardModelStage.model_validate({"batch_pairs": BATCH, "epochs": 100, **lengths})
    inputs = {"backbone": (StageInput("model", model),), "data": (StageInput("pairs", data),)}
    with tempfile.TemporaryDirectory() as name:
        folder = StageFolder(Path(name) / "stage", "key")
        folder.open()
        ours, theirs = multiprocessing.Pipe()
        reader = multiprocessing.get_context("spawn").Process(target=_read, args=(theirs,), daemon=True)
        reader.start()
        reporter: Reporter = (
            PipeReporter(ours, 300.0)
            if way == "pipe"
            else FolderReporter(folder, "reward_model", 300.0, threading.Event(), io.StringIO())
        )
        timed = Timed(reporter)
        with suppress(StageInterrupted):
            train_reward_model(StageTask(config, inputs, folder.path, seed=0), timed)
        seconds = timed.ended - timed.began
        ours.send(None)
        reader.join()
    return {"share": timed.seconds / seconds, "ms_a_step": 1000 * seconds / STEPS}


def _read(pipe: Connection) -> None:
    while pipe.recv() is not None:
        pass


def measure(way: str, data: Path, model: Path, rounds: int) -> list[dict[str, float]]:
    """Runs, each in a process of its own."""
    command = [sys.executable, "-m", "bench.reporting", "--one", way, "--model", str(model)]
    found = []
    for _ in range(rounds):
        done = subprocess.run([*command, "--pairs", str(data)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.reporting")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path(examples.__file__).parent / "tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(run_one(chosen.one, chosen.pairs, chosen.model)))
        return 0
    conditions = Conditions.now(["python -m bench.reporting", *arguments])
    rows, most = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "all.parquet"
        validate_file(chosen.pairs, data)
        for way, words in WAYS.items():
            runs = measure(way, data, chosen.model, chosen.rounds)
            shares = [run["share"] for run in runs]
            most = max(most, *shares)
            step = statistics.median(run["ms_a_step"] for run in runs)
            rows.append([words, f"{step:.1f}", f"{statistics.median(shares):.2%}", f"{max(shares):.2%}"])
            print(" | ".join(rows[-1]), flush=True)
    if chosen.docs:
        word = "reached" if most <= MOST else "**missed**"
        said = (
            f"{conditions.machine()}. {STEPS} steps of a reward model, `{chosen.model.name}`, {BATCH} pairs "
            f"each, {chosen.rounds} rounds. At most {MOST:.0%} of a step: {word}."
        )
        head = ["where it is told", "a step, ms", "share of it in telling", "most"]
        write_page_section(chosen.docs, HEADING, conditions.command, said, [head, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
