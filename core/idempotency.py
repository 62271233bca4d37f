"""Keys under which answers are kept: taken, filled and purged in the transactions of the work itself.

Whoever inserts a key's row does the work. A twin's INSERT waits for that transaction's end: after a commit it
finds the answer, after a rollback it is the one that does the work. So a crash leaves neither key nor work.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg.errors import LockNotAvailable
from sqlalchemy import bindparam, delete, func, select, text, update
from sqlalchemy.exc import OperationalError

from core.connections import LOCK_TIMEOUT_MILLISECONDS
from core.database import Transaction
from core.errors import Conflict, Unprocessable
from core.tables import IdempotencyKey

KEPT = timedelta(hours=24)
PURGED_AT_ONCE = 10_000
TWIN_MILLISECONDS = 200


class TwinInProgress(Conflict):
    """A request with this Idempotency-Key is being worked on: ask again in a moment."""

    code, title, retryable = "idempotency_key_in_progress", "The same request is in progress", True


class KeyReused(Unprocessable):
    """This Idempotency-Key came with another request: take a new key for it."""

    code, title = "idempotency_key_reused", "The key belongs to another request"


@dataclass(frozen=True)
class KeyPlace:
    """Where a key counts: two owners, or two paths, may use the same one."""

    owner: str
    path: str
    key: str


@dataclass(frozen=True)
class Keyed:
    """A request that came with a key. fingerprint: what tells it from another one."""

    place: KeyPlace
    fingerprint: bytes


@dataclass(frozen=True)
class KeptAnswer:
    """An answer as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: str


# One statement bounds the wait for a twin and, where there was none, lifts that bound for the work to come.
_TAKE = text(
    "INSERT INTO idempotency_keys (owner, path, key, fingerprint) "
    "SELECT :owner, :path, :key, :fingerprint WHERE set_config('lock_timeout', :patience, true) <> '' "
    "ON CONFLICT DO NOTHING RETURNING set_config('lock_timeout', :lock_timeout, true)"
)
# As above; the bound is lifted by an aggregate, which comes after the last row and not after the first.
# Whoever waits here keeps all waiting that share its transaction: a twin is left to itself soon.
_TAKE_ALL = text("""
WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', :patience, true) AS was_set),
taken AS (
    INSERT INTO idempotency_keys (owner, path, key, fingerprint)
    SELECT :of_owner, :of_path, key, decode(fingerprint, 'hex')
    FROM patience, jsonb_to_recordset(CAST(:rows AS jsonb)) AS asked (key text, fingerprint text)
    WHERE was_set <> ''
    ORDER BY key
    ON CONFLICT DO NOTHING RETURNING key
)
SELECT array_agg(key) AS keys, set_config('lock_timeout', :lock_timeout, true) FROM taken
""")
_KEEP_ALL = text("""
UPDATE idempotency_keys SET status = answer.status, headers = answer.headers, body = answer.body
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS answer (key text, status int, headers jsonb, body text)
WHERE idempotency_keys.owner = :of_owner AND idempotency_keys.path = :of_path
    AND idempotency_keys.key = answer.key
""")
_FREE = text("""
DELETE FROM idempotency_keys WHERE owner = :of_owner AND path = :of_path AND key = ANY(:keys)
""")
_KEEP = (
    update(IdempotencyKey)
    .where(
        IdempotencyKey.owner == bindparam("of_owner"),
        IdempotencyKey.path == bindparam("of_path"),
        IdempotencyKey.key == bindparam("of_key"),
    )
    .execution_options(synchronize_session=False)
)


def take_key(
    tx: Transaction, place: KeyPlace, fingerprint: bytes, patience_seconds: float
) -> KeptAnswer | None:
    """Take the key for this transaction's work: None; or the answer that it has led to before.

    Raises KeyReused, and TwinInProgress where a twin has not ended within `patience_seconds`.
    """
    values = {
        **vars(place),
        "fingerprint": fingerprint,
        "patience": str(max(1, round(patience_seconds * 1000))),
        "lock_timeout": str(LOCK_TIMEOUT_MILLISECONDS),
    }
    try:
        if tx.session.scalar(_TAKE, values) is not None:
            return None
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise TwinInProgress() from error
        raise
    row = tx.session.get(IdempotencyKey, (place.owner, place.path, place.key))
    if row is None or row.status is None or row.body is None:
        raise TwinInProgress()  # it was purged just now
    if row.fingerprint != fingerprint:
        raise KeyReused(loc=("header", "Idempotency-Key"))
    return KeptAnswer(row.status, row.headers or {}, row.body)


def keep_answer(tx: Transaction, place: KeyPlace, answer: KeptAnswer) -> None:
    """Write the answer beside the work that it tells of; the key was taken by this transaction."""
    parameters = {"of_owner": place.owner, "of_path": place.path, "of_key": place.key}
    values = {"status": answer.status, "headers": dict(answer.headers), "body": answer.body}
    tx.session.connection().execute(_KEEP.values(values), parameters)


def take_keys(tx: Transaction, owner: str, path: str, asked: Sequence[Keyed]) -> set[str]:
    """Take several keys; returns those of them that had led to nothing before, and are this transaction's.

    Raises OperationalError where a twin of one is under way.
    """
    rows = [{"key": each.place.key, "fingerprint": each.fingerprint.hex()} for each in asked]
    values = {"of_owner": owner, "of_path": path, "rows": json.dumps(rows)}
    values |= {"patience": str(TWIN_MILLISECONDS), "lock_timeout": str(LOCK_TIMEOUT_MILLISECONDS)}
    return set(tx.session.connection().execute(_TAKE_ALL, values).scalar_one() or ())


def keep_answers(
    tx: Transaction, owner: str, path: str, taken: set[str], answers: Mapping[str, KeptAnswer]
) -> None:
    """Write answers by key; keys that were taken and are not answered are free again."""
    place = {"of_owner": owner, "of_path": path}
    if answers:
        rows = json.dumps([{"key": key, **vars(answer)} for key, answer in answers.items()])
        tx.session.connection().execute(_KEEP_ALL, {**place, "rows": rows})
    if unanswered := taken - answers.keys():
        tx.session.connection().execute(_FREE, {**place, "keys": sorted(unanswered)})


def purge_keys(tx: Transaction) -> int:
    """Forget answers older than `KEPT`, some thousands at most; returns how many. Recovery calls it."""
    old = (
        select(IdempotencyKey.owner, IdempotencyKey.path, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.clock_timestamp() - KEPT)
        .limit(PURGED_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).subquery()
    same = (getattr(IdempotencyKey, name) == old.c[name] for name in ("owner", "path", "key"))
    purged = tx.session.execute(delete(IdempotencyKey).where(*same).returning(IdempotencyKey.key))
    return len(purged.all())
