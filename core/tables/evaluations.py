"""Evaluations outside of jobs."""

from sqlalchemy import CheckConstraint, Index, String, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from core.states import JobState
from core.tables.base import Base, CreatedAt, Json, JsonOrNull, Moment, Versioned, one_of


class Evaluation(Versioned, Base):
    """Models measured on a dataset's prompts by a judge, and the report of it.

    request: what was asked for, names by role and the settings with every length resolved. report: what the
    stage's report.json holds. warnings: what a person should read, each once.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint(one_of("status", JobState), name="status"),
        CheckConstraint("status <> 'succeeded' OR report IS NOT NULL", name="succeeded_has_report"),
        Index("ix_evaluations_owner_id", "owner", "id"),
        Index("ix_evaluations_run_id", "run_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    models: Mapped[list[str]] = mapped_column(ARRAY(String))
    request: Mapped[Json]
    run_id: Mapped[str | None]
    report: Mapped[JsonOrNull]
    warnings: Mapped[list[str]] = mapped_column(ARRAY(String), server_default=text("'{}'"))
    progress: Mapped[JsonOrNull]
    error: Mapped[JsonOrNull]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Moment]
    finished_at: Mapped[Moment]
    deleted_at: Mapped[Moment]
