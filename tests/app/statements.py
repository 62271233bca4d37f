"""What is sent to the database while a test looks."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from core.database import engine


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements of this process, as they are sent."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    event.listen(engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine(), "before_cursor_execute", note)
