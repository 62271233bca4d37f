"""The queue's statements that every submission sends: built once, which takes longer than sending them."""

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from core.tables import Job, Run

ENQUEUE = (
    upsert(Run.__table__)  # type: ignore[arg-type]
    .values(
        age=func.coalesce(bindparam("asked_age", type_=Run.age.type), func.clock_timestamp()),
        checkpoint=select(Run.checkpoint)
        .where(
            Run.owner == bindparam("of_owner"), Run.key == bindparam("of_key"), Run.checkpoint.is_not(None)
        )
        # The furthest: a paused run may record its last one after a later run of the key has its first.
        .order_by(Run.checkpoint["step"].as_integer().desc(), Run.id.desc())
        .limit(1)
        # Until this run's row is there to be found by who drops the checkpoint: core/retention.py.
        .with_for_update(read=True, key_share=True)
        .scalar_subquery(),
        # That of the job that wants the run, whoever advances it; else the one being answered.
        request_id=func.coalesce(
            select(Job.request_id).where(Job.id == bindparam("of_job")).scalar_subquery(),
            bindparam("answering", type_=Run.request_id.type),
        ),
    )
    .on_conflict_do_nothing()
    .returning(Run.id)
)
"""A run, from its columns and of_owner, of_key, of_job, asked_age, answering. No row: the key has one."""
