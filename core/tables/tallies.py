"""Figures that workers have counted."""

from typing import Any

from sqlalchemy import Double, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base


class TallyRow(Base):
    """A sum that only rises, under its name and labels."""

    __tablename__ = "tallies"

    name: Mapped[str] = mapped_column(primary_key=True)
    labels: Mapped[dict[str, Any]] = mapped_column(JSONB, primary_key=True)
    value: Mapped[float] = mapped_column(Double, server_default=text("0"))
