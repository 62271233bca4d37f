"""API keys and scopes -> Caller."""

import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Double, bindparam, cast, func, select
from starlette.concurrency import run_in_threadpool

from core.api_keys import SECRET_PREFIX, digest
from core.database import open_session
from core.errors import ServiceError
from core.tables import ApiKey

TRUSTED_SECONDS = 1.0
"""A key that was deleted opens doors for this long at most, in processes other than that which deleted it."""
MOST_KNOWN = 10_000

_KEY = select(
    ApiKey.id,
    ApiKey.owner,
    ApiKey.scopes,
    cast(func.extract("epoch", ApiKey.expires_at - func.clock_timestamp()), Double).label("seconds_left"),
).where(
    ApiKey.secret_sha256 == bindparam("secret"),
    ApiKey.deleted_at.is_(None),
    (ApiKey.expires_at.is_(None)) | (ApiKey.expires_at > func.clock_timestamp()),
)

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


class _Known(NamedTuple):
    caller: Caller
    until: float


_known: dict[bytes, _Known] = {}
"""Callers by the digest of their key, as a process has read them within `TRUSTED_SECONDS`."""


async def authenticate(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Who calls, by the key's digest; in a session of its own, so that a request that waits holds none."""
    if credentials is None or not credentials.credentials.startswith(SECRET_PREFIX):
        raise Unauthenticated()
    secret_sha256 = digest(credentials.credentials)
    known = _known.get(secret_sha256)
    if known is None or time.monotonic() >= known.until:
        known = await run_in_threadpool(_read, secret_sha256)
    return known.caller


def forget_callers() -> None:
    """A key has been deleted, or the database is another: whoever calls next is looked up anew."""
    _known.clear()


def _read(secret_sha256: bytes) -> _Known:
    # An index looks for a digest of 256 random bits: comparing it tells nothing about the secret.
    read_at = time.monotonic()
    with open_session() as session:
        found = session.connection().execute(_KEY, {"secret": secret_sha256}).first()
    if found is None:
        _known.pop(secret_sha256, None)
        raise Unauthenticated("The key is unknown, deleted or expired")
    trusted = TRUSTED_SECONDS if found.seconds_left is None else min(TRUSTED_SECONDS, found.seconds_left)
    known = _Known(Caller(found.owner, found.id, frozenset(found.scopes)), read_at + trusted)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[secret_sha256] = known
    return known


def requires(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency: the caller, who has this scope."""

    async def authorize(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if not caller.scopes & IMPLIED[scope]:
            raise MissingScope(scope)
        return caller

    return authorize


async def authenticate_trainer(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Who calls with any key, by the Basic scheme too: for programs that send only what an address holds.

    The key is the password, or the name where there is none.
    """
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if credentials is None and scheme.lower() == "basic":
        credentials = HTTPAuthorizationCredentials(scheme="Bearer", credentials=_key_of_basic(given))
    return await authenticate(credentials)


def _key_of_basic(given: str) -> str:
    try:
        name, _, password = base64.b64decode(given.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise Unauthenticated() from None
    return password or name
