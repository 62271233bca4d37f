"""What must hold once the faults are over, told by rows, files and processes, not by the product's code."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from experiments.chaos.ledger import DELETED, Entry, Ledger
from experiments.chaos.process_table import descendants
from experiments.chaos.stack import NotInTime, Stack, wait_until

_SHOWN = 20
TABLES = {"dataset": "datasets", "job": "jobs", "comparison": "comparisons"}
GONE_SECONDS = 30.0
_UNFINISHED = """
SELECT (SELECT count(*) FROM runs WHERE state IN ('queued', 'running'))
     + (SELECT count(*) FROM runs WHERE state NOT IN ('queued', 'running') AND NOT applied)
     + (SELECT count(*) FROM jobs WHERE status IN ('queued', 'running') AND deleted_at IS NULL)
     + (SELECT count(*) FROM datasets WHERE status = 'validating' AND deleted_at IS NULL)
     + (SELECT count(*) FROM comparisons WHERE status IN ('queued', 'running')) AS n
"""


@dataclass(frozen=True)
class Finding:
    """A promise, what was counted, and each thing that breaks it."""

    promise: str
    counted: str
    broken: list[str]

    def __str__(self) -> str:
        shown = "".join(f"\n    {each}" for each in self.broken[:_SHOWN])
        return f"{'BROKEN' if self.broken else 'kept  '} {self.promise}: {self.counted}{shown}"


def wait_until_quiet(stack: Stack, seconds: float) -> Finding:
    """Until nothing is queued, running or left behind; what still is then is stuck."""
    try:
        wait_until(lambda: stack.sql(_UNFINISHED)[0].n == 0, "quiet", seconds)
    except NotInTime:
        stuck = stack.sql(
            "SELECT id, kind, slot, state, attempt, applied FROM runs "
            "WHERE state IN ('queued', 'running') OR NOT applied"
        )
        jobs = stack.sql("SELECT id, status FROM jobs WHERE status IN ('queued', 'running')")
        other = stack.sql(
            "SELECT id, status FROM datasets WHERE status = 'validating' AND deleted_at IS NULL"
        )
        broken = [str(row) for row in (*stuck, *jobs, *other)]
        return Finding("no work is stuck", f"not quiet after {seconds:.0f} s", broken or ["not quiet"])
    total = stack.sql("SELECT count(*) AS n FROM runs")[0].n
    return Finding("no work is stuck", f"{total} runs, all over", [])


def nothing_lost(stack: Stack, ledger: Ledger) -> Finding:
    """Each acknowledged object is there, with its content, and has ended as it was asked to."""
    broken: list[str] = []
    for noun in TABLES:
        rows = _objects(stack, noun)
        broken += [f"{e}: {why}" for e in ledger.of(noun) if (why := _wrong(e, rows.get(e.id), stack))]
    counted = ", ".join(f"{n} {noun}s" for noun, n in sorted(ledger.counts().items()))
    return Finding("no acknowledged work is lost, all of it has ended", counted, broken)


def _objects(stack: Stack, noun: str) -> dict[str, Any]:
    columns = {
        "dataset": "name, sha256, location, NULL AS seed, error",
        "job": "name, NULL AS sha256, NULL AS location, seed, error",
        "comparison": "NULL AS name, NULL AS sha256, NULL AS location, NULL AS seed, error",
    }
    rows = stack.sql(f"SELECT id, status, deleted_at, {columns[noun]} FROM {TABLES[noun]}")  # noqa: S608  # constants
    return {row.id: row for row in rows}


def _wrong(entry: Entry, row: Any, stack: Stack) -> str:
    """Why an object is not what was promised; empty where it is."""
    if row is None:
        return "lost"
    status = DELETED if row.deleted_at is not None else row.status
    if status not in entry.ends:
        return f"is {status}: {json.dumps(row.error)}"
    if status == DELETED:
        return ""
    if row.name is not None and row.name != entry.name:
        return f"has the name {row.name}"
    if entry.seed is not None and row.seed != entry.seed:
        return f"has the seed {row.seed}"
    if entry.digest is not None:
        file = stack.state.store / row.location
        kept = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
        if not entry.digest == row.sha256 == kept:
            return f"its content is {row.sha256} by its row, {kept} by its file"
    return ""


def nothing_doubled(stack: Stack, ledger: Ledger) -> Finding:
    """A name that was asked for once, however often it was sent, names one object."""
    made = Counter[tuple[str, str]]()
    for noun, table in (("dataset", "datasets"), ("job", "jobs")):
        made.update((noun, row.name) for row in stack.sql(f"SELECT name FROM {table}"))  # noqa: S608  # constants
    asked = [each for each in ledger.names if each[0] != "comparison"]
    broken = [f"{made[each]} {each[0]}s are named {each[1]}" for each in asked if made[each] > 1]
    return Finding("no retry made a second object", f"{len(asked)} names", broken)


def published_once(stack: Stack) -> Finding:
    """One success a run, under its last fence; one current artifact an output of a key; events told once."""
    succeeded = stack.sql(
        "SELECT c.run_id, count(*) AS times, max(c.fence) AS fence, max(r.fence) AS last, "
        "max(r.state) AS state FROM chaos.changes c JOIN runs r ON r.id = c.run_id "
        "WHERE c.state = 'succeeded' GROUP BY c.run_id"
    )
    broken = [
        f"{row.run_id}: {row.times} successes, by fence {row.fence} of {row.last}, is {row.state}"
        for row in succeeded
        if row.times != 1 or row.fence != row.last or row.state != "succeeded"
    ]
    twice = stack.sql(
        "SELECT owner, key, output, count(*) AS n FROM artifacts WHERE deleted_at IS NULL "
        "GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
    strange = stack.sql(
        "SELECT a.id, a.location, r.fence, r.state FROM artifacts a JOIN runs r ON r.id = a.run_id "
        "WHERE r.state <> 'succeeded' OR a.location NOT LIKE 'runs/' || r.id || '/' || r.fence || '/out/%%'"
    )
    told = stack.sql(
        "SELECT job_id, stage, type, count(*) AS n FROM events "
        "WHERE type IN ('stage.succeeded', 'stage.failed', 'job.succeeded', 'job.failed', 'job.cancelled') "
        "GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
    gaps = stack.sql(
        "SELECT job_id, count(*) AS n, max(id) AS last FROM events GROUP BY 1 "
        "HAVING count(*) <> max(id) OR min(id) <> 1"
    )
    broken += [str(row) for row in (*twice, *strange, *told, *gaps)]
    return Finding("no run is published twice", f"{len(succeeded)} publications", broken)


def no_orphan(stack: Stack) -> Finding:
    """Every process descends from the `mpo up` of today, and no child works for a run that is over."""
    try:
        wait_until(lambda: not _orphans(stack), "no orphans", GONE_SECONDS)
    except NotInTime:
        return Finding("no process is left alone", "", _orphans(stack))
    return Finding("no process is left alone", f"{len(stack.table())} processes, each with its parent", [])


def _orphans(stack: Stack) -> list[str]:
    table = stack.table()
    owned = descendants(table, stack.supervisor)
    running = {(row.id, row.fence) for row in stack.sql("SELECT id, fence FROM runs WHERE state = 'running'")}
    return [str(p) for p in table.values() if p.pid not in owned or (p.run and p.run not in running)]


def nothing_runs(stack: Stack) -> Finding:
    """After `mpo down`."""
    left = [str(process) for process in stack.table().values()]
    return Finding("nothing runs after `mpo down`", f"{len(left)} processes", left)
