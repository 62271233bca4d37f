"""Comparisons, their rows, and what people say of them."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.states import JobState
from core.tables.base import Base, CreatedAt, Json, JsonOrNull, Moment, Versioned, one_of


class Comparison(Versioned, Base):
    """Several models' answers to the same prompts, scored, and who wins how often."""

    __tablename__ = "comparisons"
    __table_args__ = (
        CheckConstraint(one_of("status", JobState), name="status"),
        Index("ix_comparisons_owner_id", "owner", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    models: Mapped[list[str]] = mapped_column(ARRAY(String))
    request: Mapped[Json]
    run_id: Mapped[str | None]
    row_count: Mapped[int] = mapped_column(server_default=text("0"))
    win_rates: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    progress: Mapped[JsonOrNull]
    error: Mapped[JsonOrNull]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Moment]
    deleted_at: Mapped[Moment]


class ComparisonRow(Base):
    """One prompt and what each model answered."""

    __tablename__ = "comparison_rows"

    comparison_id: Mapped[str] = mapped_column(
        ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True
    )
    index: Mapped[int] = mapped_column(primary_key=True)
    prompt: Mapped[Any] = mapped_column(JSONB)
    responses: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)


class Vote(Base):
    """What one annotator says of one row; a later vote replaces it."""

    __tablename__ = "votes"
    __table_args__ = (CheckConstraint("preferred IN ('A', 'B', 'tie', 'both_bad')", name="preferred"),)

    comparison_id: Mapped[str] = mapped_column(
        ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True
    )
    row: Mapped[int] = mapped_column(primary_key=True)
    annotator: Mapped[str] = mapped_column(primary_key=True)
    preferred: Mapped[str]
    created_at: Mapped[CreatedAt]
