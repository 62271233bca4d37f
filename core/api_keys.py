"""API keys: 256 random bits behind a prefix; only their SHA-256 is kept, which such entropy allows."""

import hashlib
import secrets

SECRET_PREFIX = "mpo_sk_"  # noqa: S105 - the public part
ALL_SCOPES = ("read", "write", "admin")
VISIBLE_CHARACTERS = 12


def new_secret() -> str:
    """A key to hand out once."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    """What the database keeps."""
    return hashlib.sha256(secret.encode()).digest()


def visible_prefix(secret: str) -> str:
    """Enough to recognise a key by, and useless otherwise."""
    return secret[:VISIBLE_CHARACTERS]
