"""How long a run waits for an idle slot, from its INSERT to its claim: by the database's own clock.

python -m bench.claim_latency [--runs 50]

Starts a whole stack in a temporary folder and uploads small datasets, one after the other, each once the one
before is validated: so a slot is idle whenever a run is queued. The INSERT is a moment before the commit.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from embedded import postgres
from embedded.state import StateFolder
from mpo_client.client import Client

WAITED = """
SELECT 1000 * extract(epoch FROM claimed_at - queued_at) FROM runs
WHERE kind = 'validate_dataset' AND attempt = 1 ORDER BY id
"""


@contextmanager
def stack(folder: Path) -> Iterator[str]:
    """The URL of a running service."""
    command = [sys.executable, "-m", "embedded", "up", "--state", str(folder), "--port", "0"]
    with (folder.parent / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            yield process.stdout.readline().removeprefix("ready ").strip()
    finally:
        process.terminate()
        process.wait()


def validate(client: Client, folder: Path, number: int) -> None:
    """Upload a dataset of its own and wait for its validation."""
    file = folder / f"{number}.jsonl"
    file.write_text(json.dumps({"prompt": f"{number}", "chosen": "good", "rejected": "bad"}) + "\n")
    dataset = client.datasets.upload(file, name=str(number))
    if client.datasets.wait(dataset.id).status != "ready":
        raise SystemExit(f"dataset {dataset.id} was refused")


def waited_milliseconds(state: StateFolder) -> list[float]:
    """Of every run so far, in the order in which they were queued."""
    sockets = Path((state.root / "sockets").read_text())
    with psycopg.connect(postgres.url(sockets).replace("+psycopg", "")) as connection:
        return [float(row[0]) for row in connection.execute(WAITED).fetchall()]


def main() -> None:
    """Print median, 95th percentile and worst."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="mpo-") as temporary:
        folder = Path(temporary)
        state = StateFolder.at(folder / "state")
        with stack(state.root) as url, Client(url, state.api_key()) as client:
            for number in range(runs + 1):
                validate(client, folder, number)
            # The first waits for the workers to start.
            waited = sorted(waited_milliseconds(state)[1:])
    p95 = waited[min(len(waited) - 1, int(0.95 * len(waited)))]
    median = statistics.median(waited)
    print(f"{len(waited)} runs: median {median:.1f} ms, p95 {p95:.1f} ms, worst {waited[-1]:.1f} ms")


if __name__ == "__main__":
    main()
