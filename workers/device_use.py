"""Whether a training uses this machine: a lock that its child holds, and that the sampler looks for.

The lock is a file in the scratch folder, one a user: whoever is to see one another shares that folder. The
kernel lets go of it however the child ends.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.settings import settings

TRIES, TRY_SECONDS = 100, 0.001
"""Who looks holds the lock for microseconds, unless it is frozen just then."""

logger = logging.getLogger(__name__)


def lock_file() -> Path:
    """This machine's, for this user: in a folder for all, another's file could not be opened."""
    return settings().scratch_or_temporary / f"mpo-device-{os.getuid()}.lock"


@contextmanager
def device_in_use(file: Path) -> Iterator[None]:
    """Show that a training uses the machine, beside others that do. Where that cannot be, a line of the log
    tells, and the training goes on."""
    with ExitStack() as opened:
        try:
            descriptor = _open(file)
            opened.callback(os.close, descriptor)
            _share(descriptor)
        except OSError as error:
            logger.warning(
                "the sampler does not see this training: %s: %s", type(error).__name__, error.strerror
            )
        yield


def is_in_use(file: Path) -> bool:
    """Whether any training uses the machine now. Raises OSError where the folder holds no locks."""
    descriptor = _open(file)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # which lets go of the lock
    return False


def _open(file: Path) -> int:
    """By its name each time: whoever clears the folder may have removed the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # In a folder for all, a link under this name is another user's doing.
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _share(descriptor: int) -> None:
    for _ in range(TRIES):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(TRY_SECONDS)
    raise BlockingIOError(errno.EAGAIN, "a process that looks for it holds the lock, and is frozen")
