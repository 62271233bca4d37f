"""docs/reliability.md: each promise, what shows it, and the figure of this run where it measured one."""

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from experiments.chaos.campaign import Campaign
from experiments.chaos.promises import SHOWN_BY_TESTS
from experiments.chaos.settings import Settings

STRUCK = {
    "child-gpu": "kill -9 of a training child",
    "child-cpu": "kill -9 of a validating child",
    "worker-gpu": "kill -9 of the gpu worker in training",
    "worker-cpu": "kill -9 of the cpu worker in a validation",
    "everything": "kill -9 of every process and `mpo up` again, from its `ready`",
    "postgres": "kill -9 of Postgres, until a submission is accepted",
}


def page(done: Sequence[Campaign], settings: Settings, command: str) -> str:
    """All of it; figures are of these campaigns alone."""
    acknowledged = Counter[str]()
    for campaign in done:
        acknowledged.update(campaign.ledger.counts())
    faults = sum(sum(campaign.faults.values()) for campaign in done)
    lines = [
        "# What the service promises, and what was seen",
        "",
        f"Written by `{command}`; figures are of that run, on {_cores()} cores with API, Postgres, Valkey, "
        "workers, sampler and the clients all on them. Nothing is claimed that is not here.",
        "",
        "Each seed starts a stack of its own. Clients upload, submit (mostly what is cached; some trains), "
        "compare, cancel, pause, resume and delete, each request again under its Idempotency-Key until it is "
        f"answered. Meanwhile faults come at random moments for {settings.storm_seconds:g} s, then one at a "
        "time; then all must become quiet. What holds then is read from rows, files and the process table by "
        "code that shares none with the service; publications are counted by a trigger in the database.",
        "",
        "| promise | figure of this run |",
        "| --- | --- |",
        *_promises(done),
        "",
        f"Acknowledged, over {len(done)} seeds ({', '.join(str(each.seed) for each in done)}): "
        f"{sum(acknowledged.values())} ({_listed(acknowledged)}). Faults that found their victim: {faults}.",
        "",
        *_fault_table(done),
        "",
        *_recovery_table(done, settings),
        "",
        *_elsewhere(),
    ]
    return "\n".join(lines) + "\n"


def _promises(done: Sequence[Campaign]) -> list[str]:
    by_promise: dict[str, list[str]] = defaultdict(list)
    for campaign in done:
        for finding in campaign.findings:
            verdict = f"BROKEN {len(finding.broken)} times" if finding.broken else "0 broken"
            by_promise[finding.promise].append(f"seed {campaign.seed}: {verdict} ({finding.counted})")
    return [f"| {promise} | {'; '.join(figures)} |" for promise, figures in by_promise.items()]


def _fault_table(done: Sequence[Campaign]) -> list[str]:
    struck = Counter[tuple[str, str]]()
    for campaign in done:
        struck.update(campaign.faults)
    actions = sorted({action for _, action in struck})
    victims = sorted({victim for victim, _ in struck})
    rows = [[victim, *(str(struck[victim, action] or "") for action in actions)] for victim in victims]
    head = [f"| struck | {' | '.join(actions)} |", "| --- |" + " --- |" * len(actions)]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def _recovery_table(done: Sequence[Campaign], settings: Settings) -> list[str]:
    times: dict[str, list[float]] = defaultdict(list)
    for campaign in done:
        for recovery in campaign.recoveries:
            times[recovery.fault].append(recovery.seconds)
    rows = [
        f"| {STRUCK[fault]} | {len(found)} | {statistics.median(found):.2f} | {max(found):.2f} |"
        for fault, found in times.items()
    ]
    return [
        f"Until the same run was claimed again (a lease is {settings.lease_seconds:g} s; promised: a lease "
        f"and 5 s, {settings.recovery_bound_seconds:g} s):",
        "",
        "| fault | times | median, s | most, s |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def _elsewhere() -> list[str]:
    head = [
        "Shown by tests, short forms in `make test`, full ones in `make chaos`:",
        "",
        "| promise | shown by |",
    ]
    return [*head, "| --- | --- |", *(f"| {promise} | {test} |" for promise, test in SHOWN_BY_TESTS)]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {noun}s" for noun, count in sorted(counts.items()))


def _cores() -> int:
    return len(os.sched_getaffinity(0))
