"""Training that is killed, frozen and cut off from its database: one fault at a time, under short leases.

`TORMENT=long` makes the outages as long as the promise has them.
"""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from experiments.chaos import audit
from experiments.chaos.campaign import client_of
from experiments.chaos.process_table import Process
from experiments.chaos.stack import CODE, Stack, send, wait_until
from tests.end_to_end.running_stack import BESIDE_OTHERS, example_rows

LEASE_SECONDS = 2.5
SETTINGS = {
    **BESIDE_OTHERS,
    "MPO_LEASE_SECONDS": str(LEASE_SECONDS),
    "MPO_RENEW_SECONDS": "0.5",
    "MPO_RECOVERY_SECONDS": "0.5",
    "MPO_LOOK_SECONDS": "1",
}
OUTAGE_SECONDS = 60.0 if os.environ.get("TORMENT") == "long" else 2 * LEASE_SECONDS
EPOCHS_OF_OUTAGE = 60 if OUTAGE_SECONDS > 30 else 12
WAIT_SECONDS = 240.0
KILLS = 3
ENDED = ("succeeded", "failed", "cancelled")
LENGTHS = {"max_prompt_tokens": 64, "max_response_tokens": 48}
DPO = {"kind": "dpo", "batch_pairs": 8, "epochs": 5, "checkpoint_seconds": 0, **LENGTHS}
PPO = {"kind": "ppo", "episodes": 48, "rollout_prompts": 4, "epochs": 1, "mini_batches": 1} | {
    "max_new_tokens": 8,
    "checkpoint_seconds": 0,
    **LENGTHS,
}
seeds = itertools.count(100)
"""A seed a job: none is in the cache."""
REWARD_MODEL = {"kind": "reward_model", "max_steps": 1, **LENGTHS}


class Service:
    """A stack, a client of one owner, and a dataset of theirs."""

    def __init__(self, stack: Stack, client: httpx.Client) -> None:
        self.stack, self.client = stack, client
        self.dataset = self.upload(24)

    def upload(self, rows: int) -> str:
        """A dataset, once it is ready."""
        body = {"name": "pairs", "kind": "preference"}
        dataset = self.client.post("/v1/datasets", json=body).raise_for_status().json()["id"]
        content = "".join(json.dumps(row) + "\n" for row in example_rows(rows))
        self.client.put(f"/v1/datasets/{dataset}/content", content=content).raise_for_status()
        return str(self.wait(f"/v1/datasets/{dataset}", "ready")["id"])

    def submit(self, stages: list[dict[str, Any]], **changes: Any) -> str:
        """A job of explicit stages, on all rows of the dataset."""
        rows = {"name": "rows", "kind": "hold_out", "fraction": 0, "inputs": {"data": self.dataset}}
        spec = {"stages": [rows, *stages], "seed": 7, **changes}
        answer = self.client.post("/v1/jobs", json=spec)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def wait(self, path: str, *states: str) -> dict[str, Any]:
        """The object once its status is one of these."""

        def arrived() -> bool:
            answer = self.client.get(path)
            found.update(answer.raise_for_status().json())
            return found["status"] in states

        found: dict[str, Any] = {}
        wait_until(arrived, f"{path}: {states}", WAIT_SECONDS)
        return found

    def stage(self, job: str, name: str) -> dict[str, Any]:
        """A stage as the API shows it."""
        stages = self.client.get(f"/v1/jobs/{job}").raise_for_status().json()["stages"]
        return dict(next(stage for stage in stages if stage["name"] == name))

    def run_of(self, job: str, stage: str) -> str:
        """The id of the run that a stage waits for, once it has one."""
        wait_until(lambda: self.stage(job, stage)["run_id"] is not None, f"a run of {stage}", WAIT_SECONDS)
        return str(self.stage(job, stage)["run_id"])

    def weights(self, model: str) -> str:
        """The digest of a model's weights, as listed."""
        files = self.client.get(f"/v1/models/{model}/files").raise_for_status().json()["data"]
        return str(next(file["sha256"] for file in files if file["name"] == "model.safetensors"))

    def row(self, run_id: str) -> Any:
        """A run's row."""
        [row] = self.stack.sql(
            "SELECT state, fence, attempt, (checkpoint ->> 'step')::int AS step, "
            "coalesce((progress ->> 'step')::int, 0) AS steps FROM runs WHERE id = %s",
            run_id,
        )
        return row

    def child(self, run_id: str) -> Process | None:
        """The process that works for a run."""
        return next((p for p in self.stack.table().values() if p.run and p.run[0] == run_id), None)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose claims are given up after seconds."""
    started = Stack(tmp_path_factory.mktemp("faults"), SETTINGS)
    started.start()
    audit.install(started)
    yield started
    started.down()
    assert started.table() == {}


@pytest.fixture(scope="module")
def service(stack: Stack) -> Iterator[Service]:
    with client_of(stack) as client:
        yield Service(stack, client)


@pytest.fixture(scope="module")
def another_owner(service: Service) -> Iterator[Service]:
    """Shares nothing with the first: what one has trained is in no cache of the other's."""
    body = {"name": "other", "owner": "other", "scopes": ["read", "write"]}
    key = service.client.post("/v1/keys", json=body).raise_for_status().json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=service.stack.url, headers=headers, timeout=30) as client:
        yield Service(service.stack, client)


@pytest.fixture(scope="module")
def tuned(service: Service) -> str:
    """The name of a policy that was trained a little."""
    job, _ = dpo_job(service, max_steps=1)
    service.wait(f"/v1/jobs/{job}", "succeeded")
    return f"{job}:dpo"


def trained(service: Service, checkpoint_seconds: float) -> str:
    """A job of a DPO, and a PPO that goes on from it."""
    reward_model = {"name": "rm", **REWARD_MODEL, "inputs": {"backbone": "tiny", "data": "rows"}}
    dpo = {"name": "dpo", **DPO, "inputs": {"policy": "tiny", "reference": "tiny", "data": "rows"}}
    roles = {"policy": "dpo", "reference": "dpo", "reward_model": "rm", "prompts": "rows"}
    stages = [dpo, {"name": "ppo", **PPO, "inputs": roles}]
    often = {"checkpoint_seconds": checkpoint_seconds}
    return service.submit([reward_model, *({**stage, **often} for stage in stages)])


def kill_after_each_new_checkpoint(service: Service, run_id: str) -> None:
    """Three deaths without progress would be poison, and these are none."""
    killed_at = 0
    for _ in range(KILLS):
        killed_at = killed_after(service, run_id, killed_at)


def killed_after(service: Service, run_id: str, step: int) -> int:
    """Kills the run's child once a checkpoint later than `step` is recorded; returns the new one's step."""

    def child_with_new_checkpoint() -> Process | None:
        row = service.row(run_id)
        assert row.state not in ENDED, f"{run_id} has {row.state} before it could be killed again"
        return service.child(run_id) if row.state == "running" and (row.step or 0) > step else None

    wait_until(lambda: child_with_new_checkpoint() is not None, f"a new checkpoint of {run_id}", WAIT_SECONDS)
    child, recorded = service.child(run_id), service.row(run_id).step
    assert child is not None
    send(child.pid, signal.SIGKILL)
    wait_until(lambda: child.pid not in service.stack.table(), "its death", WAIT_SECONDS)
    return int(recorded)


def dpo_job(service: Service, **changes: Any) -> tuple[str, str]:
    """A job of a DPO that goes on for a while, and the id of that run, which has begun."""
    inputs = {"policy": "tiny", "reference": "tiny", "data": "rows"}
    job = service.submit([{"name": "dpo", **DPO, "inputs": inputs, **changes}], seed=next(seeds))
    run_id = service.run_of(job, "dpo")
    audit.wait_for(service.stack, run_id, lambda change: change.state == "running", WAIT_SECONDS)
    return job, run_id


def test_three_kills_in_dpo_and_in_ppo_change_no_bit_of_the_weights(
    service: Service, another_owner: Service
) -> None:
    undisturbed = trained(service, checkpoint_seconds=600)
    assert service.wait(f"/v1/jobs/{undisturbed}", *ENDED)["status"] == "succeeded"
    killed = trained(another_owner, checkpoint_seconds=0)
    for stage in ("dpo", "ppo"):
        kill_after_each_new_checkpoint(another_owner, another_owner.run_of(killed, stage))
    assert another_owner.wait(f"/v1/jobs/{killed}", *ENDED)["status"] == "succeeded"
    for stage in ("dpo", "ppo"):
        assert service.stage(undisturbed, stage)["attempt"] == 1
        assert another_owner.stage(killed, stage)["attempt"] == 1 + KILLS
        assert another_owner.weights(f"{killed}:{stage}") == service.weights(f"{undisturbed}:{stage}")


def test_uploads_and_comparisons_end_while_ppo_runs(service: Service, tuned: str) -> None:
    reward_model = {"name": "rm", **REWARD_MODEL, "inputs": {"backbone": "tiny", "data": "rows"}}
    roles = {"policy": "tiny", "reference": "tiny", "reward_model": "rm", "prompts": "rows"}
    job = service.submit([reward_model, {"name": "ppo", **PPO, "episodes": 1_000_000, "inputs": roles}])
    run_id = service.run_of(job, "ppo")
    audit.wait_for(service.stack, run_id, lambda change: change.state == "running", WAIT_SECONDS)
    fence = service.row(run_id).fence
    service.upload(10)
    body = {"models": ["tiny", tuned], "prompts": ["\n\nHuman: Hello?\n\nAssistant:"]}
    made = service.client.post("/v1/comparisons", json={**body, "sampling": {"max_tokens": 4}})
    comparison = f"/v1/comparisons/{made.raise_for_status().json()['id']}"
    assert service.wait(comparison, *ENDED)["status"] == "succeeded"
    row = service.row(run_id)
    assert (row.state, row.fence, row.attempt) == ("running", fence, 1)
    service.client.post(f"/v1/jobs/{job}/cancel").raise_for_status()


@contextmanager
def frozen_postgres(stack: Stack) -> Iterator[None]:
    """Every process of Postgres stands still: it takes connections and answers nothing."""
    # `mpo up` too: it would end what does not answer.
    backends = [process.pid for process in stack.family("postgres")]
    struck = [stack.supervisor, stack.pids()["postgres"], *backends]
    for pid in struck:
        send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in struck:
            send(pid, signal.SIGCONT)


@contextmanager
def stopped_postgres(stack: Stack) -> Iterator[None]:
    """Shut down, and started again only when the block ends: whoever would start it stands still."""
    send(stack.supervisor, signal.SIGSTOP)
    pid = stack.pids()["postgres"]
    send(pid, signal.SIGINT)
    try:
        wait_until(lambda: pid not in stack.table(), "Postgres to stop", WAIT_SECONDS)
        yield
    finally:
        send(stack.supervisor, signal.SIGCONT)


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("away", [frozen_postgres, stopped_postgres], ids=["frozen", "stopped"])
def test_postgres_may_be_away_for_longer_than_a_lease_while_a_stage_trains(
    service: Service, away: Callable[[Stack], Any]
) -> None:
    # No checkpoint falls into the outage, as a child waits until its checkpoint is recorded.
    job, run_id = dpo_job(service, epochs=EPOCHS_OF_OUTAGE, checkpoint_seconds=600)
    wait_until(lambda: service.row(run_id).steps > 0, "a step", WAIT_SECONDS)
    child = service.child(run_id)
    assert child is not None
    with away(service.stack):
        ends, before, answers = time.monotonic() + OUTAGE_SECONDS, cpu_seconds(child.pid), []
        wait_until(lambda: cpu_seconds(child.pid) > before + 0.1, "a child that goes on", WAIT_SECONDS)
        while time.monotonic() < ends:
            answers.append(service.client.get("/v1/jobs"))
            time.sleep(0.2)
    assert {answer.status_code for answer in answers} == {503}
    assert all(0 < int(answer.headers["retry-after"]) <= 120 for answer in answers)
    wait_until(lambda: service.client.get("/v1/jobs").status_code == 200, "the database", WAIT_SECONDS)
    assert service.wait(f"/v1/jobs/{job}", *ENDED)["status"] == "succeeded"
    row = service.row(run_id)
    assert (row.fence, row.attempt) == (1, 1)
    [losses] = service.client.get(f"/v1/jobs/{job}/metrics", params={"names": "loss", "points": 1000}).json()[
        "data"
    ]
    assert losses["steps"] == list(range(1, len(losses["steps"]) + 1))
    assert losses["steps"][-1] == service.stage(job, "dpo")["progress"]["total_steps"]


@contextmanager
def another_worker(stack: Stack, log: Path) -> Iterator[None]:
    """A second worker for gpu runs, in the environment of the first."""
    given = Path(f"/proc/{stack.pids()['worker-gpu']}/environ").read_bytes().decode().split("\0")
    with log.open("wb") as output:
        worker = subprocess.Popen(
            ["env", "-i", *filter(None, given), sys.executable, "-m", "workers", "--slot", "gpu"],
            cwd=CODE, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(60)
        print(log.read_text())


def test_a_worker_that_comes_back_after_its_lease_changes_nothing(service: Service, tmp_path: Path) -> None:
    stack = service.stack
    job, run_id = dpo_job(service)
    wait_until(lambda: (service.row(run_id).step or 0) > 0, "a checkpoint", WAIT_SECONDS)
    frozen = [stack.supervisor, stack.pids()["worker-gpu"], *(p.pid for p in stack.family("worker-gpu"))]
    for pid in frozen:
        send(pid, signal.SIGSTOP)
    try:
        late = service.row(run_id)
        assert late.state == "running", "it had ended before it could be frozen"
        with another_worker(stack, tmp_path / "log"):
            assert service.wait(f"/v1/jobs/{job}", *ENDED)["status"] == "succeeded"
    finally:
        for pid in frozen:
            send(pid, signal.SIGCONT)
    wait_until(lambda: service.child(run_id) is None, "the end of the late child", WAIT_SECONDS)
    published = [change for change in audit.changes(stack, run_id) if change.state == "succeeded"]
    assert [change.fence for change in published] == [late.fence + 1]
    stack.sweep()
    run_folder = stack.state.store / "runs" / run_id
    assert [path.name for path in run_folder.iterdir()] == [str(late.fence + 1)]
    model = service.client.get(f"/v1/models/{job}:dpo/files/model.safetensors")
    assert hashlib.sha256(model.content).hexdigest() == service.weights(f"{job}:dpo")


def test_a_stage_that_always_crashes_fails_and_the_rest_of_the_queue_goes_on(service: Service) -> None:
    sft = {"name": "sft", "kind": "sft", "max_steps": 5000, "inputs": {"policy": "tiny", "data": "rows"}}
    job = service.submit([sft], seed=next(seeds))
    behind = service.submit([{**sft, "max_steps": 1}], seed=next(seeds))
    run_id = service.run_of(job, "sft")
    while service.row(run_id).state not in ENDED:
        child = service.child(run_id)
        if child is not None:
            send(child.pid, signal.SIGKILL)
    failed = service.wait(f"/v1/jobs/{job}", *ENDED)
    assert failed["status"] == "failed"
    stage = service.stage(job, "sft")
    assert (stage["attempt"], stage["error"]["code"]) == (3, "crashed")
    assert service.wait(f"/v1/jobs/{behind}", *ENDED)["status"] == "succeeded"
