"""Declarative base: naming convention, column types that every table shares."""

from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import BigInteger, DateTime, MetaData, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CreatedAt = Annotated[
    datetime, mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp(), nullable=False)
]
Moment = Annotated[datetime | None, mapped_column(DateTime(timezone=True))]
Json = Annotated[dict[str, Any], mapped_column(JSONB, nullable=False, server_default=text("'{}'"))]
JsonOrNull = Annotated[dict[str, Any] | None, mapped_column(JSONB(none_as_null=True))]
Counter = Annotated[int, mapped_column(BigInteger, nullable=False, server_default=text("0"))]


class Base(DeclarativeBase):
    """Constraints have names that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Versioned:
    """Rows that readers wait on: `version` rises at every UPDATE, whichever statement makes it."""

    version: Mapped[int] = mapped_column(
        BigInteger, nullable=False, server_default=text("1"), onupdate=text("version + 1")
    )


def one_of(column: str, words: type) -> str:
    """SQL of a CHECK that a column holds one of an enumeration's words."""
    listed = ", ".join(f"'{word}'" for word in words)  # type: ignore[attr-defined]
    return f"{column} IN ({listed})"
