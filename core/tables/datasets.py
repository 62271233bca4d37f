"""Datasets: what was uploaded, and the canonical rows that validation made of it."""

from sqlalchemy import BigInteger, CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from core.states import DatasetState
from core.tables.base import Base, CreatedAt, JsonOrNull, Moment, Versioned, one_of


class Dataset(Versioned, Base):
    """`location`: the uploaded bytes in the store; `rows_location`: their canonical Parquet."""

    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint(one_of("status", DatasetState), name="status"),
        CheckConstraint("kind IN ('preference', 'prompts', 'text')", name="kind"),
        CheckConstraint("status <> 'ready' OR rows_location IS NOT NULL", name="ready_has_rows"),
        Index("ix_datasets_owner_id", "owner", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'awaiting_content'"))
    max_bad_rows: Mapped[int] = mapped_column(server_default=text("0"))
    format: Mapped[str | None]
    rows: Mapped[int | None]
    bad_rows: Mapped[int | None]
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    media_type: Mapped[str | None]
    location: Mapped[str | None]
    rows_location: Mapped[str | None]
    rows_sha256: Mapped[str | None]
    report: Mapped[JsonOrNull]
    error: Mapped[JsonOrNull]
    run_id: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    deleted_at: Mapped[Moment]
