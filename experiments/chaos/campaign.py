"""One seed: a stack, clients, the storm, the lone faults, quiet, and what holds then."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from experiments.chaos import audit, checks
from experiments.chaos.caller import Caller
from experiments.chaos.checks import Finding
from experiments.chaos.faults import Storm, schedule
from experiments.chaos.ledger import Ledger
from experiments.chaos.load import WARM, Backlog, Client, World
from experiments.chaos.recovery import Recovery, measure
from experiments.chaos.settings import MODEL, Settings, quick_method
from experiments.chaos.stack import Stack, wait_until
from experiments.chaos.store_check import no_orphan_file

WARM_SECONDS = 600.0
ANSWER_SECONDS = 30.0
_TRAINS = "SELECT 1 FROM runs WHERE slot = 'gpu' AND state IN ('queued', 'running')"
TIMELY = "work goes on within a lease and 5 s"

Say = Callable[[str], None]


@dataclass
class Campaign:
    """What one seed came to."""

    seed: int
    ledger: Ledger
    faults: Counter[tuple[str, str]]
    recoveries: list[Recovery]
    findings: list[Finding]
    seconds: float

    @property
    def broken(self) -> list[Finding]:
        """The promises that were not kept."""
        return [finding for finding in self.findings if finding.broken]


def run(seed: int, settings: Settings, folder: Path, rows: bytes, say: Say) -> Campaign:
    """Leaves the stack down, its folder as it is. Raises NotInTime where not even the stack comes back."""
    stack = Stack(folder, settings.environment)
    stack.start()
    try:
        done = torment(stack, seed, settings, rows, say)
    finally:
        stack.down()
    done.findings.append(checks.nothing_runs(stack))
    return done


def torment(stack: Stack, seed: int, settings: Settings, rows: bytes, say: Say) -> Campaign:
    """All but the end of a stack that has just been started."""
    began, ledger = time.monotonic(), Ledger()
    audit.install(stack)
    try:
        with client_of(stack) as client:
            world = _world(client, rows)
            say(f"seed {seed}: a stack in {stack.state.root}")
            storm, recoveries = _strike(stack, client, world, ledger, seed, settings, say)
        say(f"seed {seed}: {ledger.counts()} acknowledged; waiting until all is quiet")
        findings = _findings(stack, ledger, settings)
    finally:
        ledger.save(stack.state.root.parent / "ledger.json")
    findings += [_answered(ledger), _timely(recoveries, settings)]
    took = time.monotonic() - began
    return Campaign(seed, ledger, storm.done, recoveries, findings, took)


@contextmanager
def client_of(stack: Stack) -> Iterator[httpx.Client]:
    """HTTP with the stack's admin key."""
    headers = {"Authorization": f"Bearer {stack.state.api_key()}"}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=ANSWER_SECONDS) as client:
        yield client


def _world(client: httpx.Client, rows: bytes) -> World:
    """One job of each warm kind has been done before anything goes wrong."""
    made = client.post(
        "/v1/datasets", files={"file": ("pairs.jsonl.gz", rows)}, data={"name": "warm", "kind": "preference"}
    )
    dataset = made.raise_for_status().json()["id"]
    jobs = []
    for kind in WARM:
        spec = {"name": "warm", "model": MODEL, "dataset": dataset, "seed": 0, "method": quick_method(kind)}
        jobs.append(client.post("/v1/jobs", json=spec).raise_for_status().json()["id"])

    def status(job: str) -> str:
        return str(client.get(f"/v1/jobs/{job}").raise_for_status().json()["status"])

    wait_until(lambda: all(status(job) == "succeeded" for job in jobs), "the warm jobs", WARM_SECONDS)
    return World(dataset, (MODEL, f"{jobs[0]}:sft", f"{jobs[1]}:dpo"))


def _strike(
    stack: Stack, client: httpx.Client, world: World, ledger: Ledger, seed: int, settings: Settings,
    say: Say,
) -> tuple[Storm, list[Recovery]]:  # fmt: skip
    """Clients work throughout; when this returns they have the answer to whatever they asked."""
    stop, calm = threading.Event(), threading.Event()
    storm, recoveries = Storm(stack, say), []
    backlog = Backlog(stack, calm)
    callers = [Caller(stack.url, stack.state.api_key(), ledger, calm) for _ in range(settings.threads)]
    threads = [
        threading.Thread(
            target=Client(f"{seed}-{n}", f"{seed} {n}", caller, ledger, backlog, world).work, args=(stop,)
        )
        for n, caller in enumerate(callers)
    ]
    for thread in threads:
        thread.start()
    try:
        storm.rage(schedule(seed, settings))
        backlog.train_no_more()
        wait_until(lambda: _is_whole(stack, client), "a whole stack after the storm", WARM_SECONDS)
        wait_until(lambda: not stack.sql(_TRAINS), "an idle gpu slot", WARM_SECONDS)
        for fault in settings.lone:
            recoveries.append(measure(stack, client, world.dataset, fault))
            say(f"{fault} killed: gone on after {recoveries[-1].seconds:.2f} s")
            wait_until(lambda: _is_whole(stack, client), f"a whole stack after {fault}", WARM_SECONDS)
    finally:
        stop.set()
        calm.set()
        for thread in threads:
            thread.join()
        for caller in callers:
            caller.close()
    return storm, recoveries


def _is_whole(stack: Stack, client: httpx.Client) -> bool:
    """Readiness names nothing that is missing; a lone fault is to be the only one."""
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _findings(stack: Stack, ledger: Ledger, settings: Settings) -> list[Finding]:
    return [
        checks.wait_until_quiet(stack, settings.quiet_seconds),
        checks.nothing_lost(stack, ledger),
        checks.nothing_doubled(stack, ledger),
        checks.published_once(stack),
        checks.no_orphan(stack),
        no_orphan_file(stack),
    ]


def _answered(ledger: Ledger) -> Finding:
    counted = ", ".join(f"{n} x {answer}" for answer, n in sorted(ledger.answers.items()))
    return Finding("no answer but 503 says that something is away", counted, ledger.errors)


def _timely(recoveries: list[Recovery], settings: Settings) -> Finding:
    bound = settings.recovery_bound_seconds
    late = [str(each) for each in recoveries if each.seconds > bound]
    slowest = max((each.seconds for each in recoveries), default=0.0)
    return Finding(TIMELY, f"at most {slowest:.2f} s of {bound:g} s", late)
