"""Answers that were given under an Idempotency-Key."""

from sqlalchemy import Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, CreatedAt, JsonOrNull


class IdempotencyKey(Base):
    """What a key has led to, written in the transaction of the work: who sees the row sees its answer too.

    fingerprint: SHA-256 of the request. status, headers and body are those of the answer.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    owner: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int | None]
    headers: Mapped[JsonOrNull]
    body: Mapped[str | None]
    created_at: Mapped[CreatedAt]
