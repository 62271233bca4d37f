"""Processes that do work, and when each was last heard of."""

from datetime import datetime

from sqlalchemy import DateTime, func
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, CreatedAt


class WorkerRow(Base):
    """A worker or sampler process: its slot class and its last sign of life."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[str]
    concurrency: Mapped[int]
    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[CreatedAt]
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
