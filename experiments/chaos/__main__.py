"""Kills, freezes and stops every process of a stack while clients use it, and counts what is lost.

A storm of faults from a seed, then faults one at a time whose recovery is measured, then quiet, then
questions to rows, files and the process table. Writes docs/reliability.md. A broken promise keeps its folder
and is the command's exit code.
"""

import argparse
import gzip
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path

import examples
from experiments.chaos import campaign
from experiments.chaos.campaign import Campaign
from experiments.chaos.report import page
from experiments.chaos.settings import FULL, SHORT

COMMAND = "python -m experiments.chaos"
PAIRS = 24


def main() -> int:
    """Runs it as the command line says; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--short", action="store_true", help="a minute, with short leases")
    parser.add_argument("--least", type=int, default=0, help="acknowledged objects that make it count")
    parser.add_argument("--docs", type=Path, help="folder for reliability.md; nothing is written without")
    arguments = parser.parse_args()
    settings = SHORT if arguments.short else FULL
    folder = Path(tempfile.mkdtemp(prefix="mpo-chaos-"))
    done: list[Campaign] = []
    for seed in arguments.seeds:
        done.append(campaign.run(seed, settings, folder / str(seed), example_rows(), say))
        tell(done[-1], folder / str(seed))
        if arguments.docs:
            given = " ".join([COMMAND, *sys.argv[1:]])
            (arguments.docs / "reliability.md").write_text(page(done, settings, given), encoding="utf-8")
        if not done[-1].broken:
            shutil.rmtree(folder / str(seed))
    acknowledged = sum(len(each.ledger.entries) for each in done)
    print(f"{acknowledged} acknowledged over {len(done)} seeds: {' '.join(map(str, arguments.seeds))}")
    if acknowledged < arguments.least:
        print(f"too few to count: {arguments.least} were wanted")
    return int(any(each.broken for each in done) or acknowledged < arguments.least)


def say(text: str) -> None:
    """A line with the time of day, so that it can be laid beside the logs of the stack."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def tell(found: Campaign, folder: Path) -> None:
    """What a seed came to, and how to see it again."""
    print(f"\nseed {found.seed}, {found.seconds:.0f} s, {sum(found.faults.values())} faults:")
    for finding in found.findings:
        print(f"  {finding}")
    if found.broken:
        print(f"  kept in {folder}; again: {COMMAND} --seeds {found.seed}", flush=True)


def example_rows() -> bytes:
    """What the trainings train on: a file of example pairs."""
    source = Path(examples.__file__).parent / "pairs.jsonl.gz"
    with gzip.open(source, "rb") as lines:
        return gzip.compress(b"".join(itertools.islice(lines, PAIRS)), mtime=0)


if __name__ == "__main__":
    sys.exit(main())
