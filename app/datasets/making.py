"""Datasets with their bytes: made together, at most once for an Idempotency-Key, and deleted together."""

from collections.abc import Callable
from contextlib import suppress

from fastapi import Response
from starlette.concurrency import run_in_threadpool

from app.datasets import service
from app.datasets.schemas import DatasetCreate
from app.idempotency import REPLAYED, Made, Once
from core.database import Transaction, open_transaction
from core.errors import ServiceError
from core.storage import Storage
from core.stored_files import StoredFile
from core.tables import Dataset


async def make_with_content(
    once: Once,
    owner: str,
    body: DatasetCreate,
    storage: Storage,
    stored: StoredFile,
    media_type: str | None,
    made: Callable[[Dataset], Made],
    fingerprint: bytes | None = None,
) -> Response:
    """Make the dataset and answer as `made` says.

    The stored bytes are deleted where an earlier request has made it, or where it is refused. fingerprint:
    what must be the same for a key, where that is not the request's body.
    """

    def make(tx: Transaction) -> Made:
        dataset = service.create_dataset(tx, owner, body)
        dataset, _ = service.accept_content(tx, owner, dataset.id, stored, media_type)
        return made(dataset)

    try:
        answer = await once.answer(owner, make, fingerprint)
    except ServiceError:
        await run_in_threadpool(storage.delete, stored.name)
        raise
    if REPLAYED in answer.headers:
        await run_in_threadpool(storage.delete, stored.name)
    return answer


def delete_with_content(owner: str, dataset_id: str, storage: Storage) -> None:
    """Delete a dataset and then its bytes. Raises NotFound, DatasetInUse."""
    with open_transaction() as tx:
        location = service.delete_dataset(tx, owner, dataset_id)
    if location is not None:
        # A store that is away keeps the bytes until the next sweep; the dataset is gone all the same.
        with suppress(OSError):
            storage.delete(location)
