"""How many requests a second a whole embedded stack takes, with the generator on the same machine.

python -m bench.load [--seconds 10] [--connections 16] [--rate 300 400] [--idle-workers] [--docs PAGE]

Starts `mpo up` in a temporary folder, uploads a small dataset, and drives the service over HTTP: submissions
of the default `mpo` method on `tiny`, polls and lists. Every answer's status is checked, every acknowledged
id must be new, and at the end each must be found in the database, which must hold no other job.
"""

import argparse
import contextlib
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.cpu_time import cpu_seconds
from bench.http_load import Answer, Measured, run_load
from bench.load_page import Conditions, write_load
from bench.load_stack import Stack, running_stack

CACHED_SECONDS = 300.0
FIRST_SEED = 1000
CLAIMED = 20
Spec = dict[str, Any]
QUICK = {
    "type": "mpo",
    "sft": {"max_steps": 1},
    "reward_model": {"on_weak": "warn", "max_steps": 1},
    "score": {"folds": 2},
    "split": {"easy_fraction": 0.5},
    "dpo": {"max_steps": 1},
    "ppo": {"episodes": 8, "rollout_prompts": 8, "epochs": 1, "mini_batches": 1, "max_new_tokens": 4},
    "evaluate": {"prompts": 4, "max_new_tokens": 4},
}


@dataclass
class Load:
    """A stack under load, and the jobs that it has acknowledged."""

    stack: Stack
    seconds: float
    connections: int
    finished: str = ""
    acknowledged: set[str] = field(default_factory=set)
    rows: list[list[str]] = field(default_factory=list)

    def measure(
        self,
        title: str,
        requests: Iterator[bytes],
        expected: int,
        on_answer: Callable[[Answer], None] = lambda answer: None,
        rate: float | None = None,
    ) -> None:
        """One row of the table."""
        host, port = urlsplit(self.stack.url).hostname or "", urlsplit(self.stack.url).port or 0
        before = cpu_seconds(self.stack.processes())
        measured = uvloop.run(
            run_load(
                host, port, requests, on_answer,
                connections=self.connections, seconds=self.seconds, rate=rate,
            )
        )  # fmt: skip
        after = cpu_seconds(self.stack.processes())
        spent = {name: after[name] - before.get(name, 0.0) for name in after}
        self.rows.append(_row(title, measured, expected, rate, spent))
        print(" | ".join(self.rows[-1]), flush=True)

    def acknowledge(self, answer: Answer) -> None:
        """Keep the id of a job that was accepted; raises where it was given before."""
        if answer.status == 202:
            job_id = answer.body[7:37].decode()
            assert answer.body.startswith(b'{"id":"job_'), answer.body[:60]
            assert job_id not in self.acknowledged, f"{job_id} was acknowledged twice"
            self.acknowledged.add(job_id)


def main(arguments: Sequence[str]) -> int:
    """Run every load and print the table; 1 where a job was lost or an answer was not what it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, nargs="+", default=[300.0, 400.0], help="of the open loops")
    parser.add_argument("--idle-workers", action="store_true", help="stop the workers while the load is on")
    parser.add_argument("--only", default="", help="loads whose title holds this word")
    parser.add_argument("--docs", type=Path, help="page of benchmarks whose section to write anew")
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.load", *arguments])
    # As a Ctrl-C: the stack is stopped on the way out.
    signal.signal(signal.SIGTERM, _leave)
    with (
        tempfile.TemporaryDirectory(prefix="mpo-load-") as folder,
        running_stack(Path(folder), MPO_MAX_OPEN_JOBS="1000000") as stack,
    ):
        load = Load(stack, chosen.seconds, chosen.connections)
        return _run(load, chosen, conditions)


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _run(load: Load, chosen: argparse.Namespace, conditions: Conditions) -> int:
    stack = load.stack
    dataset = stack.upload_examples()
    spec: Spec = {"model": "tiny", "dataset": dataset, "method": {"type": "mpo"}}
    load.finished = stack.finish_job({**spec, "method": QUICK}, CACHED_SECONDS)
    load.acknowledged.add(load.finished)
    print(f"commit to claim: {_claim_milliseconds(load, spec):.0f} ms in the median", flush=True)
    with stack.stopped_workers() if chosen.idle_workers else contextlib.nullcontext():
        _loads(load, spec, chosen)
    lost, unknown = _compare(load)
    counted = (
        f"Of {len(load.acknowledged)} acknowledged jobs {lost} were lost, and {unknown} unknown ones made"
    )
    print(counted)
    if chosen.docs is not None:
        write_load(chosen.docs, conditions, chosen.seconds, chosen.connections, load.rows, counted)
    failed = any(row[-1] != "0" for row in load.rows)
    return 1 if lost or unknown or failed else 0


def _loads(load: Load, spec: Spec, chosen: argparse.Namespace) -> None:
    stack = load.stack
    seeds = iter(range(FIRST_SEED, 1 << 30))

    def cold(*, idempotent: bool = False) -> Iterator[bytes]:
        for seed in seeds:
            headers = {"Idempotency-Key": f"load-{seed}"} if idempotent else {}
            yield stack.request("POST", "/v1/jobs", {**spec, "seed": seed}, **headers)

    def same(method: str, path: str, body: object = None, **headers: str) -> Iterator[bytes]:
        request = stack.request(method, path, body, **headers)
        while True:
            yield request

    def measure(title: str, requests: Iterator[bytes], expected: int, **more: object) -> None:
        if chosen.only in title:
            load.measure(title, requests, expected, **more)  # type: ignore[arg-type]

    accept = {"on_answer": load.acknowledge}
    path = f"/v1/jobs/{load.finished}"
    unchanged = {"If-None-Match": stack.etag(path)}
    # First, while nothing is queued: later the workers have thousands of jobs to do, on the same cores.
    measure("poll 304, nothing queued", same("GET", path, **unchanged), 304)
    measure("poll 200, nothing queued", same("GET", path), 200)
    measure("submit, cold keys", cold(), 202, **accept)
    for rate in chosen.rate:
        measure(f"submit, cold keys, open loop at {rate:g}/s", cold(), 202, **accept, rate=rate)
    measure("submit, cold keys, Idempotency-Key", cold(idempotent=True), 202, **accept)
    measure("submit, stages under way", same("POST", "/v1/jobs", {**spec, "seed": FIRST_SEED}), 202, **accept)
    measure("submit, all cached", same("POST", "/v1/jobs", {**spec, "method": QUICK}), 202, **accept)
    measure("poll 304, workers at work", same("GET", path, **unchanged), 304)
    measure("poll 200, workers at work", same("GET", path), 200)
    waiting = stack.submit({**spec, "seed": 0})
    load.acknowledged.add(waiting)
    measure("poll 200, a job at the end of the queue", same("GET", f"/v1/jobs/{waiting}"), 200)
    measure("list of 20", same("GET", "/v1/jobs?limit=20"), 200)


def _claim_milliseconds(load: Load, spec: Spec) -> float:
    """Median time from a submission's commit to its first run's claim, one job at a time on an idle stack."""
    jobs = []
    for number in range(20):
        jobs.append(
            load.stack.submit(
                {**spec, "method": {"type": "sft", "sft": {"max_steps": 1}}, "seed": 900 + number}
            )
        )
        load.stack.wait_for_stage(jobs[-1], "hold_out")
    load.acknowledged.update(jobs)
    return 1000 * statistics.median(load.stack.claim_seconds(jobs))


def _compare(load: Load) -> tuple[int, int]:
    """How many acknowledged jobs the database lacks, and how many it has that nobody was told of."""
    kept = load.stack.job_ids()
    return len(load.acknowledged - kept), len(kept - load.acknowledged)


def _row(
    title: str, measured: Measured, expected: int, rate: float | None, spent: dict[str, float]
) -> list[str]:
    count = len(measured.seconds)
    wrong = count - measured.statuses[expected]
    costs = ", ".join(f"{name} {1000 * s / count:.2f}" for name, s in spent.items() if s > 0)
    return [
        title,
        f"{measured.rate:.0f}",
        f"{1000 * measured.quantile(0.5):.1f}",
        f"{1000 * measured.quantile(0.99):.1f}",
        costs,
        str(wrong),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
