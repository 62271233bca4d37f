"""Runs: all queued work, in one table with one state machine."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.states import RunState
from core.tables.base import Base, Counter, CreatedAt, Json, JsonOrNull, Moment, Versioned, one_of


class Run(Versioned, Base):
    """The execution of one unit of work: a stage (`key` set), a dataset's validation, a comparison, an
    evaluation outside of a job (of the stage's kind, without key and job).

    inputs: role -> list of {"kind", "id", "name", "location", "sha256"}, resolved when the run was enqueued.
    fence rises at every claim; whoever writes with an older one is shut out.
    queued_at, claimed_at: of the newest attempt. request_id: the HTTP request that caused it.
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(one_of("state", RunState), name="state"),
        CheckConstraint("slot IN ('cpu', 'gpu')", name="slot"),
        CheckConstraint("state <> 'running' OR lease_until IS NOT NULL", name="running_has_lease"),
        Index(
            "uq_runs_live_key",
            "owner",
            "key",
            unique=True,
            postgresql_where=text("key IS NOT NULL AND state IN ('queued', 'running')"),
        ),
        Index(
            "ix_runs_queue",
            "slot",
            text("priority DESC"),
            "age",
            "rank",
            "id",
            postgresql_where=text("state = 'queued'"),
        ),
        Index("ix_runs_lease", "lease_until", postgresql_where=text("state = 'running'")),
        Index(
            "ix_runs_unapplied",
            "id",
            postgresql_where=text("NOT applied AND state NOT IN ('queued', 'running')"),
        ),
        Index("ix_runs_owner_key", "owner", "key"),
        Index(
            "ix_runs_kept_checkpoint",
            "id",
            postgresql_where=text("checkpoint IS NOT NULL AND state IN ('succeeded', 'failed', 'cancelled')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    kind: Mapped[str]
    slot: Mapped[str]
    key: Mapped[str | None]
    job_id: Mapped[str | None]
    subject_id: Mapped[str] = mapped_column()
    config: Mapped[Json]
    inputs: Mapped[dict[str, list[dict[str, Any]]]] = mapped_column(JSONB, server_default=text("'{}'"))
    seed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    state: Mapped[str] = mapped_column(server_default=text("'queued'"))
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    age: Mapped[CreatedAt]
    rank: Mapped[int] = mapped_column(server_default=text("0"))
    fence: Mapped[Counter]
    lease_until: Mapped[Moment]
    worker_id: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(server_default=text("1"))
    crashes_without_progress: Mapped[int] = mapped_column(server_default=text("0"))
    leases_lost_without_progress: Mapped[int] = mapped_column(server_default=text("0"))
    checkpoint: Mapped[JsonOrNull]
    progress: Mapped[JsonOrNull]
    metrics: Mapped[JsonOrNull]
    summary: Mapped[JsonOrNull]
    error: Mapped[JsonOrNull]
    log: Mapped[str] = mapped_column(server_default=text("''"))
    applied: Mapped[bool] = mapped_column(server_default=text("false"))
    request_id: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    queued_at: Mapped[CreatedAt]
    claimed_at: Mapped[Moment]
    started_at: Mapped[Moment]
    finished_at: Mapped[Moment]
