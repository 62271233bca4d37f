"""How far the sweep of the store has come."""

from datetime import datetime

from sqlalchemy import DateTime, text
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base


class SweepRow(Base):
    """One row: whoever moves `stepped_at` forward does the next step, from the first run after `after`."""

    __tablename__ = "sweeps"

    name: Mapped[str] = mapped_column(primary_key=True)
    after: Mapped[str] = mapped_column(server_default=text("''"))
    stepped_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
