"""Artifacts: immutable outputs of runs, and who refers to them."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, CreatedAt, Json, Moment


class Artifact(Base):
    """One output of one run: a file or a folder under `location` in the store.

    files: [{"name", "bytes", "sha256"}], names relative to `location`; sha256: over that list, for lineage.
    unreferenced_at: when the sweep first saw that no job needs it any more.
    """

    __tablename__ = "artifacts"
    __table_args__ = (
        Index(
            "uq_artifacts_current",
            "owner",
            "key",
            "output",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_artifacts_run_id", "run_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    job_id: Mapped[str | None]
    key: Mapped[str]
    kind: Mapped[str]
    output: Mapped[str]
    location: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    config: Mapped[Json]
    inputs: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    versions: Mapped[Json]
    hardware: Mapped[str]
    wall_seconds: Mapped[float]
    peak_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]
    unreferenced_at: Mapped[Moment]
    deleted_at: Mapped[Moment]


class ArtifactReference(Base):
    """A job's stage uses an artifact: it may not be deleted meanwhile."""

    __tablename__ = "artifact_references"

    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    stage_name: Mapped[str] = mapped_column(primary_key=True)
