"""Event streams: many readers of one job against the API process of a running stack.

mpo up --state DIR --port 8000 &
python -m bench.event_streams --state DIR --url http://127.0.0.1:8000 [--readers 1000] [--rounds 20]

A round pauses or resumes the job; its latency is from sending that request, so the commit is in it, to the
event at each reader. Transactions are the whole database's, the workers' included: the readers' are the
difference. The readers are one process, whose own time is in the latency too.
"""

import argparse
import asyncio
import gzip
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg

import examples
from embedded.postgres import socket_folder

PAIRS = Path(examples.__file__).parent / "pairs.jsonl.gz"
REST_SECONDS = 5.0
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
        """Read until cancelled."""
        seen: list[float] = []
        self.received.append(seen)
        headers = {"Accept": "text/event-stream"}
        async with self._client.stream("GET", self._path, headers=headers) as response:
            response.raise_for_status()
            self.connected += 1
            async for line in response.aiter_lines():
                if line in TOGGLES:
                    seen.append(time.monotonic())


async def until(condition: Callable[[], bool]) -> None:
    """Poll: what is waited for is counted by other tasks."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def submit(client: httpx.AsyncClient) -> str:
    """A job of the example pairs; returns its id."""
    with gzip.open(PAIRS, "rt") as file:
        rows = "".join(itertools.islice(file, 60))
    form = {"name": "bench", "kind": "preference"}
    made = await client.post("/v1/datasets", data=form, files={"file": ("pairs.jsonl", rows.encode())})
    method = {"type": "sft", "sft": {"epochs": 1000}}  # longer than any bench
    spec = {"model": "tiny", "dataset": made.raise_for_status().json()["id"], "method": method}
    return str((await client.post("/v1/jobs", json=spec)).raise_for_status().json()["id"])


async def measure(client: httpx.AsyncClient, readers: Readers, job_id: str, rounds: int) -> list[float]:
    """Seconds from each request to each reader."""
    latencies: list[float] = []
    for number in range(rounds):
        started = time.monotonic()
        action = "resume" if number % 2 else "pause"
        (await client.post(f"/v1/jobs/{job_id}/{action}")).raise_for_status()
        await until(lambda: readers.least() > number)  # noqa: B023 - awaited within the round
        latencies += [seen[number] - started for seen in readers.received]
    return latencies


async def transactions_a_second(state: Path) -> float:
    """Of the whole database."""
    query = "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database"
    host = str(socket_folder(Path((state / "sockets").read_text())))
    with psycopg.connect(host=host, user="postgres", dbname="postgres", autocommit=True) as connection:
        counts = []
        for pause in (REST_SECONDS, 0.0):
            row = connection.execute(query).fetchone()
            counts.append(float(row[0]) if row else 0.0)
            await asyncio.sleep(pause)
    return (counts[1] - counts[0]) / REST_SECONDS


def api_bytes(state: Path) -> int:
    """Resident memory of the API process."""
    recorded = json.loads((state / "processes.json").read_text())
    entries = recorded["processes"] if isinstance(recorded, dict) else recorded
    pid = next(entry["pid"] for entry in entries if entry["name"] == "api")
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


async def bench(state: Path, url: str, count: int, rounds: int) -> None:
    """Print readers, latencies, memory and transactions."""
    headers = {"Authorization": f"Bearer {(state / 'api-key').read_text().strip()}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as client:
        job_id = await submit(client)
        idle, before = await transactions_a_second(state), api_bytes(state)
        readers = Readers(client, job_id)
        tasks = [asyncio.create_task(readers.read()) for _ in range(count)]
        await until(lambda: readers.connected == count)
        first = api_bytes(state)
        latencies = sorted(await measure(client, readers, job_id, rounds))
        busy, after = await transactions_a_second(state), api_bytes(state)
        await client.post(f"/v1/jobs/{job_id}/cancel")
        await asyncio.wait(tasks)
    p99 = latencies[int(len(latencies) * 0.99)]
    print(f"readers {count}, rounds {rounds}, events received {len(latencies)}")
    print(f"latency: median {statistics.median(latencies):.3f} s, p99 {p99:.3f} s")
    print(
        f"memory of the API: {before >> 20} MiB, {first >> 20} with readers, {after >> 20} after the rounds"
    )
    print(f"transactions a second: {idle:.1f} without readers, {busy:.1f} with them")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    asyncio.run(bench(asked.state, asked.url, asked.readers, asked.rounds))


if __name__ == "__main__":
    main()
