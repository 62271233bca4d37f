"""Trains all arms in several worlds, and writes docs/gold_world.md and docs/gold_world.svg.

Does DPO on the easy pairs beat SFT, does PPO on the difficult ones add to it, and how does that compare with
DPO on all pairs, by a preference that no model has seen? Interrupted, it goes on from where it was.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from experiments.gold_world.findings import findings
from experiments.gold_world.plot import plot
from experiments.gold_world.seed import SeedResult, run_seed
from experiments.gold_world.settings import MEASURED, SMALL, Settings

COMMAND = "python -m experiments.gold_world"


def run_worlds(settings: Settings, seeds: int, processes: int, out: Path) -> list[SeedResult]:
    """All worlds, a few at a time, each in a process of its own; results by seed."""
    context = multiprocessing.get_context("spawn")
    started, results = time.monotonic(), {}
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(run_seed, settings, seed, out / str(seed)): seed for seed in range(seeds)}
        for done in as_completed(waiting):
            results[waiting[done]] = done.result()
            passed = time.monotonic() - started
            left = passed / len(results) * (seeds - len(results))
            print(f"{len(results)} of {seeds} worlds after {passed:.0f} s, ETA {left:.0f} s", flush=True)
    return [results[seed] for seed in sorted(results)]


def main() -> int:
    """Runs it as the command line says."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="worlds, 2 to 10 (default 5)")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path(".gold_world"), help="where the work is kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where page and plot go")
    parser.add_argument("--small", action="store_true", help="a world that shows only that all of it runs")
    arguments = parser.parse_args()
    if not 2 <= arguments.seeds <= 10:
        parser.error("--seeds: an interval over seeds needs 2 to 10 of them")
    settings = SMALL if arguments.small else MEASURED
    results = run_worlds(settings, arguments.seeds, arguments.processes, arguments.out)
    arguments.docs.mkdir(parents=True, exist_ok=True)
    given = " ".join([COMMAND, *sys.argv[1:]])
    page = findings(results, settings, given)
    (arguments.docs / "gold_world.md").write_text(page, encoding="utf-8")
    plot(results, arguments.docs / "gold_world.svg")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
