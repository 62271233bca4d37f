"""Base models: folders in Hugging Face format that this deployment knows by name."""

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, CreatedAt, Moment


class BaseModelRow(Base):
    """A model that was not trained here. Trained ones are artifacts named job_…:stage."""

    __tablename__ = "models"
    __table_args__ = (CheckConstraint("kind IN ('policy', 'reward_model')", name="kind"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    path: Mapped[str]
    sha256: Mapped[str]
    context_tokens: Mapped[int]
    has_chat_template: Mapped[bool]
    owner: Mapped[str]
    created_at: Mapped[CreatedAt]
    deleted_at: Mapped[Moment]
