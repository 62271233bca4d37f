"""A whole service as its user starts it: `mpo up` in a folder, reached over HTTP alone."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60
JOB_SECONDS = 300
BESIDE_OTHERS = {"MPO_WORKER_NICENESS": "0"}
"""Nothing is put before the workers of a stack that is tested: tests beside it would starve it."""

QUICK_METHOD: dict[str, Any] = {
    "type": "mpo",
    "sft": {"max_steps": 4},
    "reward_model": {"on_weak": "warn", "max_steps": 6},
    "score": {"folds": 2},
    "split": {"easy_fraction": 0.5},
    "dpo": {"max_steps": 4},
    "ppo": {"episodes": 32, "rollout_prompts": 16, "epochs": 2, "mini_batches": 2, "max_new_tokens": 16},
    "evaluate": {"prompts": 8, "max_new_tokens": 16},
}


@dataclass
class RunningStack:
    """One stack and an HTTP client that holds its admin key."""

    state: Path
    process: subprocess.Popen[str]
    url: str
    client: httpx.Client

    def upload(self, rows: list[dict[str, Any]], name: str = "pairs") -> dict[str, Any]:
        """Create a dataset from rows; waits until it has been validated."""
        content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)
        answer = self.client.post(
            "/v1/datasets",
            files={"file": ("pairs.jsonl.gz", content, "application/gzip")},
            data={"name": name, "kind": "preference"},
        )
        assert answer.status_code == 202, answer.text
        return self.wait_for(answer.headers["Location"], {"ready", "invalid"}, 60)

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Create a job."""
        answer = self.client.post("/v1/jobs", json=spec)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def wait_for(self, path: str, states: set[str], seconds: float = JOB_SECONDS) -> dict[str, Any]:
        """Long-poll an object until its status is one of these."""
        deadline = time.monotonic() + seconds
        found = self.get(path)
        while found["status"] not in states:
            assert time.monotonic() < deadline, (
                f"{path} is still {found['status']}: {json.dumps(found)[:2000]}"
            )
            answer = self.client.get(path, params={"wait": 5})
            assert answer.status_code == 200, answer.text
            found = answer.json()
        return found

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """A JSON object."""
        answer = self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def processes(self) -> dict[str, int]:
        """Process ids by the name that the supervisor knows them by."""
        recorded = json.loads((self.state / "processes.json").read_text())
        entries = recorded["processes"] if isinstance(recorded, dict) else recorded
        return {entry["name"]: entry["pid"] for entry in entries}


@contextmanager
def running_stack(state: Path) -> Iterator[RunningStack]:
    """`mpo up` on a free port; `mpo down` at the end."""
    log_file = state.parent / f"{state.name}.log"
    log = log_file.open("w")
    # The stack is the user's own: nothing of a test's environment may reach it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MPO_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mpo_client.cli", "up", "--state", str(state), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=ROOT,
        env=environment | BESIDE_OTHERS,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), (
            line,
            (state.parent / f"{state.name}.log").read_text(),
        )
        url = line.split()[1]
        key = (state / "api-key").read_text().strip()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90) as client:
            yield RunningStack(state, process, url, client)
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
        log.close()


def example_rows(count: int) -> list[dict[str, Any]]:
    """The first example pairs that the project ships."""
    with gzip.open(ROOT / "examples" / "pairs.jsonl.gz", "rt") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]
