"""Faults one at a time, each in the middle of a run: how long until somebody works on that run again."""

import contextlib
import gzip
import itertools
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from experiments.chaos import audit
from experiments.chaos.audit import Change
from experiments.chaos.settings import MODEL, PROMPT, long_method, quick_method
from experiments.chaos.stack import NotInTime, Stack, send, wait_until

TRIES = 5
SECONDS = 120.0
_EPOCHS = 400
_ROWS = 400_000
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Recovery:
    """seconds: from the fault until the run was claimed anew; of Postgres, until a submission was taken."""

    fault: str
    run_id: str
    seconds: float
    attempt: int


def measure(stack: Stack, client: httpx.Client, dataset: str, fault: str) -> Recovery:
    """Gives a slot long work, strikes, and waits for the next claim of that run; raises NotInTime."""
    if fault == "postgres":
        return _outage(stack, client, dataset)
    give = _long_upload if fault.endswith("-cpu") else _long_job
    for _ in range(TRIES):
        run_id, let_go = give(stack, client, dataset)
        try:
            at = _strike(stack, fault, run_id)
            again = _next_sign(stack, run_id, at)
            if again.state == "running":
                attempt = stack.sql("SELECT attempt FROM runs WHERE id = %s", run_id)[0].attempt
                return Recovery(fault, run_id, again.at - at, attempt)
        finally:
            let_go()
    raise NotInTime(f"{fault}: each run had ended before it could be struck, {TRIES} times")


def _next_sign(stack: Stack, run_id: str, at: float) -> Change:
    """The claim after the blow, or the end of a run that the blow did not reach."""
    signs = ("running", "succeeded")
    ended = [change for change in audit.changes(stack, run_id) if change.state == "succeeded"]
    return (
        ended[0]
        if ended
        else audit.wait_for(stack, run_id, lambda change: change.at > at and change.state in signs, SECONDS)
    )


def _long_job(stack: Stack, client: httpx.Client, dataset: str) -> tuple[str, Callable[[], None]]:
    """A DPO that checkpoints at every step, urgent enough to be claimed before all that waits."""
    spec = {"model": MODEL, "dataset": dataset, "priority": 100, "seed": next(_numbers) + 10_000}
    answer = client.post("/v1/jobs", json={**spec, "method": long_method(_EPOCHS, checkpoint_seconds=0)})
    answer.raise_for_status()
    job = answer.json()["id"]

    def has_checkpoint() -> bool:
        return bool(stack.sql("SELECT 1 FROM runs WHERE job_id = %s AND kind = 'dpo' AND state = 'running' "
                              "AND checkpoint IS NOT NULL", job))  # fmt: skip

    wait_until(has_checkpoint, f"a checkpoint of {job}", SECONDS)
    run_id = stack.sql("SELECT id FROM runs WHERE job_id = %s AND kind = 'dpo'", job)[0].id
    return run_id, lambda: _let_go(client, "POST", f"/v1/jobs/{job}/cancel")


def _long_upload(stack: Stack, client: httpx.Client, _dataset: str) -> tuple[str, Callable[[], None]]:
    """A file that takes seconds to validate."""
    row = json.dumps({"prompt": PROMPT, "chosen": "Here", "rejected": f"There {next(_numbers)}"})
    content = gzip.compress(f"{row}\n".encode() * _ROWS, compresslevel=1, mtime=0)
    files = {"file": ("pairs.jsonl.gz", content, "application/gzip")}
    answer = client.post("/v1/datasets", files=files, data={"name": "long", "kind": "preference"})
    answer.raise_for_status()
    dataset = answer.json()["id"]
    run_id = stack.sql("SELECT run_id FROM datasets WHERE id = %s", dataset)[0].run_id

    def has_begun() -> bool:
        child = any(p.run and p.run[0] == run_id for p in stack.table().values())
        return child or audit.changes(stack, run_id)[-1].state == "succeeded"

    wait_until(has_begun, f"a child for {run_id}", SECONDS)
    return run_id, lambda: _let_go(client, "DELETE", f"/v1/datasets/{dataset}")


def _let_go(client: httpx.Client, method: str, path: str) -> None:
    """The slot is wanted for the next fault."""
    # It may be away; then what keeps it away is to be heard of, not this.
    with contextlib.suppress(httpx.TransportError):
        client.request(method, path)


def _strike(stack: Stack, fault: str, run_id: str) -> float:
    """Returns since when the service can be expected to recover, in seconds since 1970."""
    name, _, slot = fault.rpartition("-")
    at = time.time()
    if fault == "everything":
        stack.kill_everything()
        stack.start()
        # What a machine takes to start is its own affair.
        at = time.time()
    elif name == "worker":
        send(stack.pids()[fault], signal.SIGKILL)
    else:
        for child in stack.family(f"worker-{slot}"):
            if child.run and child.run[0] == run_id:
                at = time.time()
                send(child.pid, signal.SIGKILL)
    return at


def _outage(stack: Stack, client: httpx.Client, dataset: str) -> Recovery:
    """Postgres killed: until the next submission is accepted."""
    spec = {"model": MODEL, "dataset": dataset, "method": quick_method("sft"), "seed": 0}
    at = time.time()
    send(stack.pids()["postgres"], signal.SIGKILL)

    def is_accepted() -> bool:
        return client.post("/v1/jobs", json=spec).status_code == httpx.codes.ACCEPTED

    wait_until(is_accepted, "a submission after Postgres was killed", SECONDS)
    return Recovery("postgres", "", time.time() - at, 1)
