"""API keys: a SHA-256 of the secret, never the secret."""

from sqlalchemy import LargeBinary, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, CreatedAt, Moment


class ApiKey(Base):
    """Who may call, as which owner, with which scopes."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    prefix: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Moment]
    deleted_at: Mapped[Moment]
