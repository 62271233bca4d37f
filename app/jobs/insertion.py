"""The rows of a new job in two statements, whatever the number of its stages.

Arrays in place of rows: the ORM, or an INSERT of a hundred parameters, takes longer than all else that a
submission does.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, String, bindparam, func, insert, select, text, true
from sqlalchemy.orm import make_transient_to_detached

from core.database import Transaction
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
_JOB = select(_MADE.c.created_at).add_cte(_READ)
# JSON travels as one text a column: the driver escapes an array of texts in Python, character by character.
_STAGES = text("""
WITH told AS (
    INSERT INTO events (job_id, id, type, stage, message, data)
    SELECT :job_id, event.* FROM ROWS FROM (
        unnest(
            CAST(:event_ids AS bigint[]), CAST(:event_types AS text[]), CAST(:event_stages AS text[]),
            CAST(:event_messages AS text[])
        ),
        jsonb_array_elements(CAST(:event_data AS jsonb))
    ) AS event
)
INSERT INTO stages (
    job_id, name, position, rank, kind, slot, seed, key, base, status, cached, run_id, started_at,
    finished_at, config, inputs, artifacts, summary, error
)
SELECT :job_id, name, position, rank, kind, slot, seed, key, base, status, cached, run_id, started_at,
    finished_at, config, inputs, artifacts, NULLIF(summary, 'null'), NULLIF(error, 'null')
FROM ROWS FROM (
    unnest(
        CAST(:name AS text[]), CAST(:position AS int[]), CAST(:rank AS int[]), CAST(:kind AS text[]),
        CAST(:slot AS text[]), CAST(:seed AS bigint[]), CAST(:key AS text[]), CAST(:base AS text[]),
        CAST(:status AS text[]), CAST(:cached AS boolean[]), CAST(:run_id AS text[]),
        CAST(:started_at AS timestamptz[]), CAST(:finished_at AS timestamptz[])
    ),
    jsonb_array_elements(CAST(:config AS jsonb)), jsonb_array_elements(CAST(:inputs AS jsonb)),
    jsonb_array_elements(CAST(:artifacts AS jsonb)), jsonb_array_elements(CAST(:summary AS jsonb)),
    jsonb_array_elements(CAST(:error AS jsonb))
) AS stage (
    name, position, rank, kind, slot, seed, key, base, status, cached, run_id, started_at, finished_at,
    config, inputs, artifacts, summary, error
)
""")
_PLAIN = (
    *("name", "position", "rank", "kind", "slot", "seed", "key", "base", "status", "cached", "run_id"),
    *("started_at", "finished_at"),
)
_CHANGING = ("artifacts", "summary", "error")
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


def insert_job(tx: Transaction, job: Job, leaves: Sequence[tuple[str, str, str | None]]) -> None:
    """The row of a job, held by this transaction, and of its inputs: (kind, name, artifact)."""
    kinds, names, artifacts = map(list, zip(*leaves, strict=True))
    row = {f"job_{column.name}": getattr(job, column.name) for column in _COLUMNS}
    row |= {"kinds": kinds, "names": names, "artifacts": artifacts}
    job.created_at = tx.session.connection().execute(_JOB, row).scalar_one()
    # From now on the session writes what is changed of it, as of a row that it has read.
    make_transient_to_detached(job)
    tx.session.add(job)


def insert_stages(tx: Transaction, job: Job, stages: Sequence[StageRow], written: "WrittenStages") -> None:
    """The rows of a job's stages as they are by now, and of its events."""
    values: dict[str, Any] = {name: [getattr(stage, name) for stage in stages] for name in _PLAIN}
    for name in _CHANGING:
        values[name] = json.dumps([getattr(stage, name) for stage in stages])
    of_job = [event for event in tx.events if event["job_id"] == job.id]
    tx.events[:] = [event for event in tx.events if event["job_id"] != job.id]
    for name in ("id", "type", "stage", "message"):
        values[f"event_{name}s"] = [event[name] for event in of_job]
    values["event_data"] = json.dumps([event["data"] for event in of_job])
    tx.session.connection().execute(_STAGES, {"job_id": job.id, **written, **values})


WrittenStages = Mapping[str, str]
"""`config` and `inputs` of the stages in their order, as JSON arrays."""


def written_stages(columns: Sequence[Mapping[str, Any]]) -> WrittenStages:
    """The JSON of what no seed changes; columns: of `StageRow`, in the stages' order."""
    return {name: json.dumps([stage[name] for stage in columns]) for name in ("config", "inputs")}
