"""Reward-model and DPO stages by our own loop and by TRL's trainers: wall time on the same pairs and steps.

python -m bench.pair_engines [--rounds 5] [--pairs 192]

Each round runs both engines, one right after the other, in an order that alternates; a ratio is of the two
runs of one round, so that whatever else the machine does weighs on both. A first round, not counted, loads
what is loaded late.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

import examples
from mpo.config import DPOStage, RewardModelStage
from mpo.dataset_files import validate_file
from mpo.dpo.train import train_dpo
from mpo.records import read_pairs, write_rows
from mpo.reporter import Reporter, SilentReporter, StageInput, StageTask
from mpo.reward_model.train import train_reward_model

EXAMPLES = Path(examples.__file__).parent
ENGINES = ("native", "trl")
LENGTHS = {"max_prompt_tokens": 128, "max_response_tokens": 96}

Stage = RewardModelStage | DPOStage


def seconds(config: Stage, data: Path) -> float:
    """Wall time of a whole stage on `tiny`, loading and saving included."""
    model = StageInput("tiny", EXAMPLES / "tiny")
    rows = StageInput("pairs", data)
    train: Callable[[StageTask, Reporter], None]
    if isinstance(config, DPOStage):
        inputs, train = {"policy": (model,), "reference": (model,), "data": (rows,)}, train_dpo
    else:
        inputs, train = {"backbone": (model,), "data": (rows,)}, train_reward_model
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train(StageTask(config, inputs, Path(folder), seed=0), SilentReporter())
        return time.perf_counter() - started


def measure(kind: type[Stage], data: Path, rounds: int) -> dict[str, list[float]]:
    """Wall times of both engines, round by round."""
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for number in range(rounds + 1):
        for engine in ENGINES if number % 2 else reversed(ENGINES):
            config = kind.model_validate({"engine": engine, "batch_pairs": 16, "epochs": 2, **LENGTHS})
            took = seconds(config, data)
            if number > 0:
                times[engine].append(took)
    return times


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=192)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        whole, data = Path(folder) / "all.parquet", Path(folder) / "pairs.parquet"
        validate_file(EXAMPLES / "pairs.jsonl.gz", whole, media_type=None, max_bad_rows=0)
        write_rows(data, read_pairs(whole)[: arguments.pairs])
        print(
            f"{arguments.pairs} pairs, 2 epochs, 16 a step; {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}"
        )
        print("| stage | native, s | trl, s | trl / native: median [least, most] |")
        print("| --- | --- | --- | --- |")
        for name, kind in (("reward_model", RewardModelStage), ("dpo", DPOStage)):
            times = measure(kind, data, arguments.rounds)
            ratios = [theirs / ours for ours, theirs in zip(times["native"], times["trl"], strict=True)]
            medians = " | ".join(f"{statistics.median(times[engine]):.2f}" for engine in ENGINES)
            print(
                f"| {name} | {medians} | {statistics.median(ratios):.2f} "
                f"[{min(ratios):.2f}, {max(ratios):.2f}] |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
