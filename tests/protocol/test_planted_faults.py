"""Faults of the protocol that are easy to make: each is planted, and the machine of `test_model` finds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from core import aftermath, job_rows, queue, work_lookup
from tests.mpo.planting import planted
from tests.protocol.machine import Protocol
from tests.protocol.test_model import check
from workers.recovery import Recovery

SEQUENCES = 300


@dataclass(frozen=True)
class Fault:
    """What is wrong, in which function, at which place of its source."""

    name: str
    function: Callable[..., Any]
    text: str
    fault: str


FAULTS = [
    Fault("a late attempt may publish", queue._held, "Run.fence == claimed.fence, ", ""),
    Fault("a claim keeps the fence", queue.claim, "fence=Run.fence + 1", "fence=Run.fence"),
    Fault(
        "no second look after the INSERT",
        work_lookup.find_run,
        "if current_artifacts(tx, job.owner, stage.key):",
        "if False:",
    ),
    Fault(
        "a run is waited for without a lock",
        work_lookup._join_live_run,
        "held.with_for_update(read=not raised, key_share=raised)",
        "held",
    ),
    Fault("a job is moved without its lock", job_rows.lock_job, ".with_for_update()", ""),
    Fault(
        "leases expire without grace",
        Recovery.pass_once,
        "queue.expire_leases(tx) if database_seen else []",
        "queue.expire_leases(tx)",
    ),
    Fault(
        "a state that came later counts as told",
        aftermath.apply_run,
        "Run.state == run.state, Run.fence == run.fence, ",
        "",
    ),
    Fault(
        "only the run's own job is told",
        job_rows.jobs_waiting_on,
        "select(StageRow.job_id).where(StageRow.run_id == run.id)",
        "[run.job_id]",
    ),
    Fault("a waiting job does not raise the priority", work_lookup._join_live_run, "if raised:", "if False:"),
    Fault("a key's checkpoint is forgotten", queue.enqueue, '"checkpoint": checkpoint', '"checkpoint": None'),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_found(fault: Fault, admin: "psycopg.Connection[Any]") -> None:
    with planted(fault.function, fault.text, fault.fault), pytest.raises(Exception) as found:  # noqa: PT011
        check(admin, SEQUENCES, shrink=False)
    print(fault.name, Protocol.sequences, str(found.value)[:150])
