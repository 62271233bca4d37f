"""The statement by which runs enter the queue: one, however many there are."""

from sqlalchemy import text

# All rows travel as one JSON text, whose members have the names of the table's columns. In the order of their
# keys: two that queue the same keys wait for each other in one direction only. A checkpoint is the key's
# furthest: a paused run may record its last one after a later run of the key has its first. It is held until
# the new row is there to be found by who drops the checkpoint: core/retention.py.
ENQUEUE = text("""
INSERT INTO runs (
    id, kind, slot, owner, key, job_id, subject_id, config, inputs, seed, priority, rank, request_id, age,
    checkpoint
)
SELECT id, kind, slot, owner, key, job_id, subject_id, config, inputs, seed, priority, rank, request_id,
    coalesce(age, clock_timestamp()),
    (
        SELECT earlier.checkpoint FROM runs AS earlier
        WHERE earlier.owner = new.owner AND earlier.key = new.key AND earlier.checkpoint IS NOT NULL
        ORDER BY CAST(earlier.checkpoint ->> 'step' AS bigint) DESC, earlier.id DESC
        LIMIT 1
        FOR KEY SHARE
    )
FROM jsonb_populate_recordset(CAST(NULL AS runs), CAST(:rows AS jsonb)) AS new
ORDER BY new.owner, new.key
ON CONFLICT DO NOTHING
RETURNING id
""")
"""Gives the ids of the runs that were queued: those whose key has no live run of the same owner."""
