"""Folders that workers and samplers of this machine left behind when they were killed.

<scratch>/{run}-{fence} of a worker's runs; others belong to a process, which holds a lock in its own. Only
<scratch>/tokens is everybody's: token ids that stages share.
"""

import fcntl
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from sqlalchemy import select

from core.database import open_session
from core.settings import settings
from core.states import TERMINAL
from core.tables import Run
from mpo.token_cache import TokenCache

FOLDER = re.compile(r"(run_[0-9A-Z]{26})-([0-9]+)")
LOCK, TOKENS = ".lock", "tokens"
UNLOCKED_SECONDS = 60.0
"""A folder is there a moment before its lock is."""

logger = logging.getLogger(__name__)


def scratch_folder() -> Path:
    """Where this machine's workers keep the folders of their runs."""
    return settings().scratch or Path(gettempdir()) / "mpo"


def token_cache() -> TokenCache:
    """The token ids that stages on this machine share."""
    return TokenCache(scratch_folder() / TOKENS, settings().token_cache_bytes)


def clear_scratch(scratch: Path, grace: timedelta) -> int:
    """Remove folders of fences that are over and that nobody has written to for the grace; says how many."""
    found = {path: match for path in scratch.glob("run_*-*") if (match := FOLDER.fullmatch(path.name))}
    if not found:
        return 0
    with open_session() as session:
        ids = {match.group(1) for match in found.values()}
        rows = session.execute(select(Run.id, Run.state, Run.fence).where(Run.id.in_(ids)))
        runs = {row.id: row for row in rows}
    cleared = 0
    for path, match in found.items():
        run = runs.get(match.group(1))
        if run is None or (run.state not in TERMINAL and int(match.group(2)) >= run.fence):
            continue
        if not grace or _last_written(path) <= datetime.now(UTC) - grace:
            logger.info("sweep: cleared %s", path.name)
            shutil.rmtree(path, ignore_errors=True)
            cleared += 1
    return cleared


@contextmanager
def own_folder(scratch: Path, prefix: str) -> Iterator[Path]:
    """A folder for this process, gone at the end; what killed processes left under the prefix goes first."""
    scratch.mkdir(parents=True, exist_ok=True)
    for left in scratch.glob(f"{prefix}*"):
        _clear_unowned(left)
    with (
        TemporaryDirectory(prefix=prefix, dir=scratch, ignore_cleanup_errors=True) as made,
        (Path(made) / LOCK).open("w") as lock,
    ):
        # The kernel lets go of it however this process ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(made)


def _clear_unowned(folder: Path) -> None:
    try:
        if folder.stat().st_mtime > time.time() - UNLOCKED_SECONDS:
            return
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # its owner lives, or has no lock to tell by; or it is gone
    logger.info("cleared %s", folder.name)


def _last_written(folder: Path) -> datetime:
    """The folder's, its log's or its output's last change: whoever works there changes one of them."""
    times = [p.stat().st_mtime for p in (folder, folder / "log", folder / "output") if p.exists()]
    return datetime.fromtimestamp(max(times, default=0.0), UTC)
