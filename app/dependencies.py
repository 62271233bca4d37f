"""What routes ask for: a caller, a transaction, a session that reads, the store.

`scope="function"` ends a transaction before the answer is sent: a client never reads 202 for what was not
committed. A route names the caller first, so that a key is checked before anything is opened.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from app.authentication import Caller, authenticate_trainer, requires
from core.database import Transaction, open_session, open_transaction
from core.storage import Storage, storage


def _transaction() -> Iterator[Transaction]:
    with open_transaction() as tx:
        yield tx


def _session() -> Iterator[Session]:
    with open_session() as session:
        yield session


TransactionDep = Annotated[Transaction, Depends(_transaction, scope="function")]
SessionDep = Annotated[Session, Depends(_session, scope="function")]
StorageDep = Annotated[Storage, Depends(storage)]
ReadCaller = Annotated[Caller, Depends(requires("read"))]
TrainerCaller = Annotated[Caller, Depends(authenticate_trainer)]
WriteCaller = Annotated[Caller, Depends(requires("write"))]
AdminCaller = Annotated[Caller, Depends(requires("admin"))]
