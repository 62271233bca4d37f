"""Event streams: many readers of one job against the API of a stack.

python -m bench.event_streams [--readers 1000] [--rounds 20] [--docs PAGE]

Starts `mpo up` in a temporary folder. A round pauses or resumes the job, which trains; its latency is from
sending that request, so the commit is in it, to the event at each reader. Transactions are the whole
database's, the workers' included: the readers' are the difference. The readers are one process, whose own
time is in the latency too.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.cpu_time import resident_bytes
from bench.load_page import Conditions, write_page_section
from bench.load_stack import Stack, running_stack
from embedded.services import API, MOST_API_PROCESSES

HEADING = "## Many event streams of one job"
COLUMNS = (
    "from the request to the event's receipt, s: median",
    "p99",
    "API's memory, MiB: no readers, readers, after the rounds",
    "transactions a second: no readers, readers",
)
REST_SECONDS = 10.0
SETTLE_SECONDS = 12.0
"""Postgres hears of an idle session's transactions up to ten seconds late, also of connecting readers'."""
FIRST_STEPS = 1
TOGGLES = ("event: job.paused", "event: job.resumed")


class Readers:
    """Open streams of one job, and when each has received how many of the events that rounds make."""

    def __init__(self, client: httpx.AsyncClient, job_id: str) -> None:
        self._client, self._path = client, f"/v1/jobs/{job_id}/events"
        self.connected = 0
        self.received: list[list[float]] = []

    def least(self) -> int:
        """Events that the slowest reader has received."""
        return min(len(seen) for seen in self.received)

    async def read(self) -> None:
        """Read until the job has ended."""
        seen: list[float] = []
        self.received.append(seen)
        headers = {"Accept": "text/event-stream"}
        async with self._client.stream("GET", self._path, headers=headers) as response:
            response.raise_for_status()
            self.connected += 1
            async for line in response.aiter_lines():
                if line in TOGGLES:
                    seen.append(time.monotonic())


@dataclass(frozen=True)
class Found:
    """latencies: seconds, ascending. mebibytes: of the API without readers, with them, and after the rounds.
    transactions: a second, without readers and with them."""

    latencies: Sequence[float]
    mebibytes: Sequence[int]
    transactions: Sequence[float]


async def until(condition: Callable[[], bool]) -> None:
    """Poll: what is waited for is counted by other tasks."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def submit(stack: Stack) -> str:
    """Id of a job that trains, and goes on for longer than any bench."""
    method = {"type": "sft", "sft": {"epochs": 1000}}
    job_id = stack.submit({"model": "tiny", "dataset": stack.upload_examples(), "method": method})
    stack.wait_for_steps(job_id, "sft", FIRST_STEPS)
    return job_id


async def latencies(client: httpx.AsyncClient, readers: Readers, job_id: str, rounds: int) -> list[float]:
    """Seconds from each request to each reader."""
    found: list[float] = []
    for number in range(rounds):
        started = time.monotonic()
        action = "resume" if number % 2 else "pause"
        (await client.post(f"/v1/jobs/{job_id}/{action}")).raise_for_status()
        await until(lambda: readers.least() > number)  # noqa: B023 - awaited within the round
        found += [seen[number] - started for seen in readers.received]
    return sorted(found)


async def transactions_a_second(stack: Stack) -> float:
    """Of the whole database, once what came before has been counted."""
    await asyncio.sleep(SETTLE_SECONDS)
    before = stack.transactions()
    await asyncio.sleep(REST_SECONDS)
    return (stack.transactions() - before) / REST_SECONDS


def api_mebibytes(stack: Stack) -> int:
    """Memory of the API: of the process that starts the others, too."""
    return resident_bytes(stack.processes())[API] >> 20


async def measure(stack: Stack, count: int, rounds: int) -> Found:
    """Connect the readers and do the rounds."""
    job_id = submit(stack)
    headers = {"Authorization": f"Bearer {stack.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, limits=limits, timeout=120) as client:
        idle, before = await transactions_a_second(stack), api_mebibytes(stack)
        readers = Readers(client, job_id)
        tasks = [asyncio.create_task(readers.read()) for _ in range(count)]
        await until(lambda: readers.connected == count)
        busy, connected = await transactions_a_second(stack), api_mebibytes(stack)
        seconds = await latencies(client, readers, job_id, rounds)
        after = api_mebibytes(stack)
        await client.post(f"/v1/jobs/{job_id}/cancel")
        await asyncio.wait(tasks)
    return Found(seconds, (before, connected, after), (idle, busy))


def write(page: Path, conditions: Conditions, count: int, rounds: int, row: Sequence[str]) -> None:
    """The section of the page."""
    processes = min(MOST_API_PROCESSES, len(os.sched_getaffinity(0)))
    said = (
        f"{conditions.machine()}. The API's {processes} processes, Postgres, a worker that trains and the "
        f"readers, one Python process, share them. {count * rounds:,} events received by {count:,} readers "
        f"in {rounds} rounds. Memory is that of all the API's processes, and of the one that started them; "
        "what they share is counted in each. Transactions are of the whole database, the training's too. A "
        "look every 0.2 s is 0.1 s of the median; the rest, the readers' own process included, was not told "
        "apart."
    )
    write_page_section(page, HEADING, conditions.command, said, [COLUMNS, row])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.event_streams")
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--docs", type=Path)
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.event_streams", *arguments])
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        found = asyncio.run(measure(stack, chosen.readers, chosen.rounds))
    row = (
        f"{statistics.median(found.latencies):.2f}",
        f"{found.latencies[int(len(found.latencies) * 0.99)]:.2f}",
        ", ".join(map(str, found.mebibytes)),
        ", ".join(f"{each:.1f}" for each in found.transactions),
    )
    print(" | ".join(row))
    if chosen.docs:
        write(chosen.docs, conditions, chosen.readers, chosen.rounds, row)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
