"""Metrics of runs, a row a reported step."""

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, CreatedAt, Json


class Metric(Base):
    """What a run reported at a step. A resumed attempt overwrites the steps that it repeats."""

    __tablename__ = "metrics"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    values: Mapped[Json]
    created_at: Mapped[CreatedAt]
