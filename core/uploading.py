"""Writing one file to the store, digested as it goes, visible only by `commit`; and how a store fails."""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.stored_files import StoredFile

PART = ".part"
"""Ends the name of a local file that is not whole yet."""

logger = logging.getLogger(__name__)


class StoreFailed(OSError):
    """The store did not do what was asked: it is full, cannot be written, or does not answer."""


@contextmanager
def failures_named(location: str, *, missing_is_one: bool = False) -> Iterator[None]:
    """Whatever goes wrong inside is a StoreFailed; that there is no such file stays FileNotFoundError.

    missing_is_one: where a file is written, a bucket or folder that is not there is a failure too.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not missing_is_one:
            raise
        raise _failed(error, error.strerror) from error
    except OSError as error:
        logger.warning("the store failed at %s: %s", location, error)
        raise _failed(error, error.strerror) from error
    except Exception as error:  # the border to the library that serves the store: each has errors of its own
        logger.warning("the store failed at %s: %s: %s", location, type(error).__name__, error)
        raise _failed(error, None) from error


class UploadWriter:
    """A file that is digested while it is written and appears at its location only by `commit`.

    open_remote: opens an object store's writer, whose parts become a file when it is closed. local: where the
    file shall lie on this machine. One of them is given.
    """

    def __init__(
        self, location: str, open_remote: Callable[[], Any] | None, local: Path | None = None
    ) -> None:
        self.location, self._local = location, local
        self._digest, self.bytes = hashlib.sha256(), 0
        self._committed = False
        with failures_named(location, missing_is_one=True):
            if local is not None:
                make_folder(local.parent)
                self._file: Any = self._temporary.open("wb")
            elif open_remote is not None:
                self._file = open_remote()

    @property
    def _temporary(self) -> Path:
        assert self._local is not None
        return self._local.with_name(f"{self._local.name}{PART}")

    def write(self, chunk: bytes) -> None:
        """Append bytes; raises StoreFailed, after which only `abort` makes sense."""
        self._digest.update(chunk)
        self.bytes += len(chunk)
        with failures_named(self.location, missing_is_one=True):
            self._file.write(chunk)

    def commit(self) -> StoredFile:
        """Make the file appear; returns its size and digest. Raises StoreFailed: then it has not appeared."""
        with failures_named(self.location, missing_is_one=True):
            if self._local is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._temporary.replace(self._local)
                sync_folder(self._local.parent)
            else:
                self._file.close()
        self._committed = True
        return StoredFile(self.location, self.bytes, self._digest.hexdigest())

    def abort(self) -> None:
        """Leave nothing behind of what was not committed. Raises nothing: the sweep takes what is left."""
        if self._committed:
            return
        try:
            with failures_named(self.location):
                self._discard()
        except OSError:
            logger.warning("%s: what was written of it is left to the sweep", self.location)

    def _discard(self) -> None:
        if self._local is not None:
            # What is still buffered may not fit either.
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            return
        if hasattr(self._file, "discard"):
            # Closing would make a file of the parts that were sent.
            self._file.closed = True
            self._file.discard()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, such that a power cut does not lose them."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(error: Exception, said: str | None) -> StoreFailed:
    """The system's words for it, or the class alone: other texts may hold addresses."""
    number = error.errno if isinstance(error, OSError) else None
    return StoreFailed(number or errno.EIO, said or type(error).__name__)
