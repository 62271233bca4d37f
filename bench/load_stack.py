"""The stack that a load is put on: `mpo up` in a folder of its own, and what its user does beside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import httpx
import psycopg

import examples
from embedded.postgres import socket_folder
from embedded.services import inherited_environment
from mpo_client.client import Client

EXAMPLES = Path(examples.__file__).parent
WORKERS = ("worker-cpu", "worker-gpu", "sampler")
GENERATOR = "generator"


@dataclass
class Stack:
    """A running stack. Its database is read only to count, and for what its times tell."""

    state: Path
    url: str
    key: str
    client: Client

    def request(self, method: str, path: str, body: object = None, **headers: str) -> bytes:
        """A whole HTTP request."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(self.url).netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Authorization: Bearer {self.key}", f"Content-Length: {len(content)}"]
        lines += ["Content-Type: application/json"] if body is not None else []
        return "\r\n".join([*lines, "", ""]).encode() + content

    def upload_examples(self) -> str:
        """Id of a small dataset that is ready."""
        dataset = self.client.datasets.upload(EXAMPLES / "pairs.jsonl.gz", name="load")
        assert self.client.datasets.wait(dataset.id).status == "ready"
        return dataset.id

    def submit(self, spec: dict[str, Any]) -> str:
        """Id of a new job."""
        return self.client.jobs.create(spec).id

    def finish_job(self, spec: dict[str, Any], seconds: float) -> str:
        """Id of a new job, once it has succeeded."""
        job = self.client.jobs.wait(self.submit(spec), deadline_seconds=seconds)
        assert job.status == "succeeded", job
        return job.id

    def wait_for_stage(self, job_id: str, name: str) -> None:
        """Until a stage of a job has succeeded."""
        while not any(
            s.name == name and s.status == "succeeded" for s in self.client.jobs.get(job_id).stages
        ):
            self.client.jobs.get(job_id, wait_seconds=5)

    def wait_for_steps(self, job_id: str, kind: str, steps: int) -> str:
        """Id of the run of a job's stage of this kind, once it has taken so many steps."""
        while True:
            job = self.client.jobs.get(job_id, wait_seconds=5)
            assert not job.is_finished, job
            for stage in job.stages:
                step = (stage.progress and stage.progress.step) or 0
                if stage.kind == kind and stage.run_id and step >= steps:
                    return stage.run_id

    def etag(self, path: str) -> str:
        """The ETag of an object as it is now."""
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.key}"}).headers["ETag"]

    def job_ids(self) -> set[str]:
        """Every job that the database holds."""
        return {row[0] for row in self._query("SELECT id FROM jobs")}

    def claim_seconds(self, jobs: Sequence[str]) -> list[float]:
        """From the INSERT of each job's first run to its claim; the commit comes after the INSERT."""
        statement = (
            "SELECT extract(epoch FROM started_at - created_at) FROM runs "
            "WHERE job_id = ANY(%s) AND kind = 'hold_out' AND started_at IS NOT NULL"
        )
        return [float(row[0]) for row in self._query(statement, list(jobs))]

    def steps_by_time(self, run_id: str) -> list[tuple[float, int]]:
        """When a run's steps were written down, in seconds since 1970, and the last of them each time."""
        # Those of about a second are written in one transaction, which xmin names.
        statement = (
            "SELECT extract(epoch FROM max(created_at)), max(step) FROM metrics "
            "WHERE run_id = %s GROUP BY xmin::text ORDER BY 1"
        )
        return [(float(moment), int(step)) for moment, step in self._query(statement, run_id)]

    def transactions(self) -> int:
        """Those that have ended so far, of all that use the database."""
        return int(self._query("SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database")[0][0])

    def processes(self) -> dict[str, int]:
        """Process ids by the name that the supervisor knows them by, and this process's own."""
        recorded = json.loads((self.state / "processes.json").read_text())
        return {each["name"]: each["pid"] for each in recorded} | {GENERATOR: os.getpid()}

    @contextlib.contextmanager
    def stopped_workers(self) -> Iterator[None]:
        """Workers, and what they have started, get no time meanwhile."""
        self._signal_workers(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_workers(signal.SIGCONT)

    def _signal_workers(self, number: signal.Signals) -> None:
        for name, pid in self.processes().items():
            if name in WORKERS:
                os.kill(pid, number)

    def _query(self, statement: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        sockets = Path((self.state / "sockets").read_text())
        with psycopg.connect(host=str(socket_folder(sockets)), user="postgres") as connection:
            return connection.execute(statement, parameters).fetchall()


@contextlib.contextmanager
def running_stack(folder: Path, **environment: str) -> Iterator[Stack]:
    """Start a stack in a folder; stopped at the end."""
    command = [sys.executable, "-m", "embedded", "up", "--state", str(folder), "--port", "0"]
    variables = {**inherited_environment(), **environment}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=variables,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit((folder / "up.log").read_text())
        url, key = line.split()[1], (folder / "api-key").read_text().strip()
        with Client(url, key) as client:
            yield Stack(folder, url, key, client)
    finally:
        process.terminate()
        process.communicate()
