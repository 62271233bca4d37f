"""What sampling at full load takes of a training on the same machine, by the sampler's share of the time.

python -m bench.sampling_beside_training [--shares 0.5 1] [--windows 3] [--seconds 20] [--docs PAGE]

For each share a stack that `mpo up` starts, with MPO_SAMPLER_SHARE; on it a training by SFT on the example
pairs, of a model of random weights that the same requests ask for answers. Windows in turn: no requests, 32
completions at once all the time. A row shows medians with the smallest and largest; the slow-down is that of
each pair of windows. Share 1 is a sampler that gives way to nobody.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.load_page import Conditions, spread, write_page_section
from bench.load_stack import Stack, running_stack
from bench.sampling import TINY, make_work
from bench.sampling_memory import write_model
from bench.sampling_sides import Service

HEADING = "## Sampling beside a training"
MODEL, WIDTH = "beside", 256
AT_ONCE = 32
FIRST_STEPS = 10
"""Its first ones are slower: memory is taken, caches are filled."""
SETTLE_SECONDS = 2.0
SPEC = {"type": "sft", "sft": {"epochs": 1000, "batch_pairs": 16, "checkpoint_seconds": 86_400}}
"""Longer than anybody measures: cancelled at the end."""


@dataclass
class Found:
    """A number a window. alone, beside: training steps a second; tokens: the sampler's a second."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def column(self) -> list[str]:
        """Cells of the table, in the order of `WHAT`."""
        slower = [100 * (1 - b / a) for a, b in zip(self.alone, self.beside, strict=True)]
        return [
            spread(self.alone, 2), spread(self.beside, 2), spread(slower, 0, " %"), spread(self.tokens, 0)
        ]  # fmt: skip


WHAT = (
    "training steps a second, no requests",
    f"training steps a second, {AT_ONCE} completions at once",
    "slow-down of the training",
    f"the sampler's tokens a second, {AT_ONCE} completions at once",
)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.sampling_beside_training")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 1.0], help="of the sampler")
    parser.add_argument("--windows", type=int, default=3, help="of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window")
    parser.add_argument("--docs", type=Path, help="page whose section to write")
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.sampling_beside_training", *arguments])
    columns: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="mpo-beside-") as folder:
        model = write_model(Path(folder) / MODEL, TINY, seed=0, width=WIDTH)
        for share in chosen.shares:
            environment = {"MPO_MODELS": str(model), "MPO_SAMPLER_SHARE": f"{share:g}"}
            with running_stack(Path(folder) / f"share-{share:g}", **environment) as stack:
                columns.append(measure(stack, chosen.windows, chosen.seconds).column())
            print(f"share {share:g}", *columns[-1], sep=" | ", flush=True)
    rows = [[what, *cells] for what, *cells in zip(WHAT, *columns, strict=True)]
    if chosen.docs is not None:
        said = (
            f"{conditions.machine()}. SFT with 16 texts a step and completions of the same model of random "
            f"weights (four layers, {WIDTH} wide); {chosen.windows} windows of {chosen.seconds:g} s of each "
            "kind in turn; medians with the smallest and largest. Share 1 gives way to nobody."
        )
        head = ["what", *(f"share {share:g}" for share in chosen.shares)]
        write_page_section(chosen.docs, HEADING, conditions.command, said, [head, *rows])
    return 0


def measure(stack: Stack, windows: int, seconds: float) -> Found:
    """Windows in turn, without requests and with, beside one training."""
    service, work = Service(stack, MODEL), make_work()
    service.text(work.prompts[0], 1)  # the sampler has started, and loaded the model
    job_id = stack.submit({"model": MODEL, "dataset": stack.upload_examples(), "method": SPEC})
    run_id = stack.wait_for_steps(job_id, "sft", FIRST_STEPS)
    found, spans = Found(), list[tuple[float, float]]()
    for _ in range(windows):
        time.sleep(SETTLE_SECONDS)
        began = time.time()
        time.sleep(seconds)
        spans.append((began, time.time()))
        began = time.time()
        # Those under way at the end are waited for, which is no part of the window.
        found.tokens.append(service.tokens_a_second(work, AT_ONCE, seconds))
        spans.append((began, began + seconds))
    rates = _steps_a_second(stack, job_id, run_id, spans)
    stack.client.jobs.cancel(job_id)
    found.alone, found.beside = rates[::2], rates[1::2]
    return found


def _steps_a_second(
    stack: Stack, job_id: str, run_id: str, spans: Sequence[tuple[float, float]]
) -> list[float]:
    """Between two moments at which steps were written down, about a second apart, they go on evenly."""
    while not (written := stack.steps_by_time(run_id)) or written[-1][0] < spans[-1][1]:
        job = stack.client.jobs.get(job_id)
        assert not job.is_finished, job
        time.sleep(SETTLE_SECONDS)
    moments, steps = zip(*written, strict=True)
    at = [np.interp(span, moments, steps) for span in spans]
    return [
        float(last - first) / (end - began) for (first, last), (began, end) in zip(at, spans, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
