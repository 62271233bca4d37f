"""The rows of a new job in two statements, whatever the number of its stages.

Arrays in place of rows: the ORM, or an INSERT of a hundred parameters, takes longer than all else that a
submission does.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, String, bindparam, func, insert, select, text, true
from sqlalchemy.orm import make_transient_to_detached

from core.database import Transaction
from core.known_work import TOUCHED
from core.tables import Job, JobInput, StageRow

_COLUMNS = [column for column in Job.__table__.columns if column.name != "created_at"]
_MADE = (
    insert(Job.__table__)  # type: ignore[arg-type]
    .values({c.name: bindparam(f"job_{c.name}", type_=c.type) for c in _COLUMNS})
    .returning(Job.id, Job.created_at)
    .cte("made")
)
_LEAF = (
    func.unnest(*(bindparam(name, type_=ARRAY(String)) for name in ("kinds", "names", "artifacts")))
    .table_valued("kind", "name", "artifact_id")
    .render_derived("leaf")
)
_READ = (
    insert(JobInput.__table__)  # type: ignore[arg-type]
    .from_select(
        ["job_id", "kind", "name", "artifact_id"],
        select(_MADE.c.id, _LEAF.c.kind, _LEAF.c.name, _LEAF.c.artifact_id).select_from(
            _MADE.join(_LEAF, true())
        ),
    )
    .cte("read")
)
# What there is of the stages' work is looked for on the way: a statement of its own costs as much again.
_JOB = select(_MADE.c.created_at, func.array(TOUCHED.scalar_subquery()).label("touched")).add_cte(_READ)
# All rows travel as one JSON text: the driver writes arrays in Python, item by item.
_STAGES = text("""
WITH told AS (
    INSERT INTO events (job_id, id, type, stage, message, data)
    SELECT :job_id, id, type, stage, message, data
    FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS event (
        id bigint, type text, stage text, message text, data jsonb
    )
)
INSERT INTO stages (
    job_id, name, position, rank, kind, slot, seed, key, base, status, cached, run_id, started_at,
    finished_at, config, inputs, artifacts, summary, error
)
SELECT :job_id, name, position, rank, kind, slot, seed, key, base, status, cached, run_id, started_at,
    finished_at, config, inputs, artifacts, summary, error
FROM ROWS FROM (
    jsonb_to_recordset(CAST(:stages AS jsonb)) AS (
        name text, position int, rank int, kind text, slot text, seed bigint, key text, base text,
        status text, cached boolean, run_id text, started_at timestamptz, finished_at timestamptz,
        artifacts jsonb, summary jsonb, error jsonb
    ),
    jsonb_array_elements(CAST(:config AS jsonb)), jsonb_array_elements(CAST(:inputs AS jsonb))
) AS stage (
    name, position, rank, kind, slot, seed, key, base, status, cached, run_id, started_at, finished_at,
    artifacts, summary, error, config, inputs
)
""")
_CHANGING = (
    *("name", "position", "rank", "kind", "slot", "seed", "key", "base", "status", "cached", "run_id"),
    *("started_at", "finished_at", "artifacts", "summary", "error"),
)
_ENCODE = json.JSONEncoder(default=datetime.isoformat).encode
FRESH_JOB: Mapping[str, Any] = {
    **{"status": "queued", "pauses_taken": [], "pause": None, "accepts_weak": False, "weak_accepted": []},
    **{"error": None, "event_counter": 0, "started_at": None, "finished_at": None, "deleted_at": None},
    "version": 1,
}
FRESH_STAGE: Mapping[str, Any] = {
    **{"status": "waiting", "cached": False, "run_id": None, "artifacts": {}, "summary": None, "error": None},
    **{"started_at": None, "finished_at": None},
}
"""What the database would fill in: given, so that no row is read back."""


def insert_job(
    tx: Transaction, job: Job, leaves: Sequence[tuple[str, str, str | None]], keys: Sequence[str]
) -> set[str]:
    """The row of a job, held by this transaction, and of its inputs: (kind, name, artifact).

    keys: of its stages. Returns those of which there is an artifact or a run.
    """
    kinds, names, artifacts = map(list, zip(*leaves, strict=True))
    row = {f"job_{column.name}": getattr(job, column.name) for column in _COLUMNS}
    row |= {"kinds": kinds, "names": names, "artifacts": artifacts, "of_owner": job.owner, "of_keys": keys}
    made = tx.session.connection().execute(_JOB, row).one()
    job.created_at = made.created_at
    # From now on the session writes what is changed of it, as of a row that it has read.
    make_transient_to_detached(job)
    tx.session.add(job)
    return set(made.touched)


def insert_stages(tx: Transaction, job: Job, stages: Sequence[StageRow], written: "WrittenStages") -> None:
    """The rows of a job's stages as they are by now, and of its events."""
    of_job = [event for event in tx.events if event["job_id"] == job.id]
    tx.events[:] = [event for event in tx.events if event["job_id"] != job.id]
    changing = [{name: getattr(stage, name) for name in _CHANGING} for stage in stages]
    rows = {"stages": _ENCODE(changing), "events": _ENCODE(of_job)}
    tx.session.connection().execute(_STAGES, {"job_id": job.id, **written, **rows})


WrittenStages = Mapping[str, str]
"""`config` and `inputs` of the stages in their order, as JSON arrays."""


def written_stages(columns: Sequence[Mapping[str, Any]]) -> WrittenStages:
    """The JSON of what no seed changes; columns: of `StageRow`, in the stages' order."""
    return {name: json.dumps([stage[name] for stage in columns]) for name in ("config", "inputs")}
