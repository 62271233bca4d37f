"""API keys and scopes -> Caller."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import func, select

from core.api_keys import SECRET_PREFIX, digest
from core.database import open_session
from core.errors import ServiceError
from core.tables import ApiKey

Scope = Literal["read", "write", "admin"]
IMPLIED: dict[Scope, frozenset[Scope]] = {
    "read": frozenset({"read", "write", "admin"}),
    "write": frozenset({"write", "admin"}),
    "admin": frozenset({"admin"}),
}
"""Scope -> the scopes of a key that open it: who may write may read what was written."""


@dataclass(frozen=True)
class Caller:
    """Whose objects a request sees and makes."""

    owner: str
    key_id: str
    scopes: frozenset[str]


class Unauthenticated(ServiceError):
    """Send a valid key: Authorization: Bearer mpo_sk_…"""

    code, status, title = "invalid_api_key", 401, "Unauthenticated"
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": 'Bearer realm="mpo"'}


class MissingScope(ServiceError):
    """The key lacks the scope that this call needs."""

    code, status, title = "missing_scope", 403, "Forbidden"

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"This call needs a key with the scope {scope!r}", scope=scope)
        self.headers = {
            "WWW-Authenticate": f'Bearer realm="mpo", error="insufficient_scope", scope="{scope}"'
        }


_bearer = HTTPBearer(
    auto_error=False, scheme_name="ApiKey", bearerFormat="mpo_sk_…", description="An API key of this service."
)


def authenticate(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    """Who calls, by the key's digest; in a session of its own, so that a request that waits holds none."""
    if credentials is None or not credentials.credentials.startswith(SECRET_PREFIX):
        raise Unauthenticated()
    statement = select(ApiKey).where(
        # An index looks for a digest of 256 random bits: comparing it tells nothing about the secret.
        ApiKey.secret_sha256 == digest(credentials.credentials),
        ApiKey.deleted_at.is_(None),
        (ApiKey.expires_at.is_(None)) | (ApiKey.expires_at > func.clock_timestamp()),
    )
    with open_session() as session:
        key = session.scalar(statement)
    if key is None:
        raise Unauthenticated("The key is unknown, deleted or expired")
    return Caller(key.owner, key.id, frozenset(key.scopes))


def requires(scope: Scope) -> Callable[..., Caller]:
    """A dependency: the caller, who has this scope."""

    def authorize(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if not caller.scopes & IMPLIED[scope]:
            raise MissingScope(scope)
        return caller

    return authorize
