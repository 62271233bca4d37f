"""What the service costs over the bare library: the demo's job by both, in turn, on the same machine.

python -m bench.service_overhead [--rounds 2] [--docs PAGE]

The service is a stack that was just started, and its time from the submission of the job to its end, as a
client sees it; the dataset is there before. The library is `python -m mpo run` on the same spec and file, its
imports counted as the service's stages count theirs. Seeds differ by round, so that nothing is cached.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.load_page import Conditions, write_page_section
from bench.load_stack import EXAMPLES, Stack, running_stack
from embedded.services import inherited_environment
from workers.threads import threads_for

HEADING = "## The service over the bare library"
MOST, MOST_OUTSIDE, MOST_SECONDS = 1.05, 0.15, 180.0
THREADS = os.cpu_count() or 1
"""Of the library, and what the embedded stack gives its gpu worker, which computes small models by one."""


def spec_of(seed: int) -> dict[str, Any]:
    """The demo's job."""
    spec: dict[str, Any] = json.loads((EXAMPLES / "demo_job.json").read_text())
    return {**spec, "seed": seed}


def by_library(folder: Path, seed: int) -> float:
    """Seconds of the whole job in one process."""
    file = folder / f"{seed}.json"
    file.write_text(json.dumps(spec_of(seed)))
    command = [sys.executable, "-m", "mpo", "run", str(file), "--pairs", str(EXAMPLES / "pairs.jsonl.gz")]
    command += ["--model", str(EXAMPLES / "tiny"), "--out", str(folder / f"out-{seed}")]
    environment = {**inherited_environment(), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


def by_service(stack: Stack, dataset: str, seed: int) -> tuple[float, float]:
    """Seconds of the whole job, and those of its stages together."""
    started = time.perf_counter()
    job = stack.client.jobs.wait(stack.submit({**spec_of(seed), "dataset": dataset}), deadline_seconds=1_800)
    seconds = time.perf_counter() - started
    assert job.status == "succeeded", job
    ids = [next(iter(stage.artifacts.values())) for stage in job.stages if stage.artifacts]
    return seconds, sum(stack.client.artifacts.get(each).wall_seconds or 0.0 for each in ids)


def measure(folder: Path, rounds: int) -> list[tuple[float, float, float]]:
    """Round by round: seconds of the library's job, of the service's, and of the service's stages."""
    found = []
    for seed in range(1, rounds + 1):
        with running_stack(folder / f"stack-{seed}") as stack:
            service, stages = by_service(stack, stack.upload_examples(), seed)
        found.append((by_library(folder, seed), service, stages))
        print(f"library {found[-1][0]:.1f} s, service {service:.1f} s, its stages {stages:.1f} s", flush=True)
    return found


def write(page: Path, conditions: Conditions, found: Sequence[tuple[float, float, float]]) -> None:
    """The section of the page."""
    ratios = [service / library for library, service, _ in found]
    outside = [1 - stages / service for _, service, stages in found]
    longest = max(service for _, service, _ in found)
    met = [
        ("the service over the library", statistics.median(ratios) <= MOST, f"at most {MOST:g}"),
        ("outside stages", max(outside) <= MOST_OUTSIDE, f"at most {MOST_OUTSIDE:.0%}"),
        ("the whole job", longest <= MOST_SECONDS, f"at most {MOST_SECONDS:.0f} s"),
    ]
    verdict = "; ".join(f"{name} ({most}): {'reached' if ok else '**missed**'}" for name, ok, most in met)
    of_service = threads_for(THREADS, [EXAMPLES / "tiny"])
    shape = f"The demo's job on `tiny`, {len(found)} rounds"
    threads = f"the library by {THREADS} threads, the service by {of_service} (`workers/threads.py`)"
    said = f"{conditions.machine()}. {shape}; {threads}. {verdict}."
    columns = ["round", "library, s", "service, s", "service over library", "its stages, s", "outside stages"]
    rows = [
        [
            str(number),
            f"{library:.1f}",
            f"{service:.1f}",
            f"{service / library:.2f}",
            f"{stages:.1f}",
            f"{1 - stages / service:.0%}",
        ]
        for number, (library, service, stages) in enumerate(found, 1)
    ]
    write_page_section(page, HEADING, conditions.command, said, [columns, *rows])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.service_overhead")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--docs", type=Path)
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.service_overhead", *arguments])
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), chosen.rounds)
    if chosen.docs:
        write(chosen.docs, conditions, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
