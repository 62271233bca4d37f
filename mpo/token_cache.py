"""A folder of files that hold token ids, each under the key of what they were made of. Torch-free.

Stages of several processes share it. Nothing of it is needed: a file that is gone is made anew, and one that
is removed while somebody reads it stays readable to them.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SUFFIX, PARTIAL = ".arrow", ".partial"
PARTIAL_SECONDS = 3600.0
"""Whoever writes a file changes it more often; an older one was left by a process that was killed."""


@dataclass(frozen=True)
class TokenCache:
    """The files of a folder, which together take limit_bytes at most, and half of what the disk would have
    free without them: those that nobody has read for the longest go first."""

    folder: Path
    limit_bytes: int

    def path(self, key: str) -> Path:
        """Where the file of a key is, if it is there."""
        return self.folder / f"{key}{SUFFIX}"

    def mark_used(self, key: str) -> None:
        """Puts the file of a key last among those that are to go. Raises OSError where there is none."""
        os.utime(self.path(key))

    def keep(self, partial: Path, key: str) -> None:
        """Gives a whole file its name, in place of one that has it, or removes it where it is too large; then
        removes others for which there is no room, and what killed processes left. Raises OSError."""
        self._drop(PARTIAL, PARTIAL_SECONDS)
        if partial.stat().st_size > self._room():
            partial.unlink()
            return
        partial.replace(self.path(key))
        self._make_room(self.path(key))

    def drop_unused(self, seconds: float) -> int:
        """Removes what nobody has read for so long, and what killed processes left; says how many files."""
        return self._drop(SUFFIX, seconds) + self._drop(PARTIAL, PARTIAL_SECONDS)

    def _drop(self, suffix: str, seconds: float) -> int:
        before = time.time() - seconds
        old = [path for path, found in self._files(suffix) if found.st_mtime < before]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _room(self) -> int:
        """Bytes that all files may take together."""
        held = sum(found.st_size for _, found in self._files(SUFFIX))
        return min(self.limit_bytes, (held + shutil.disk_usage(self.folder).free) // 2)

    def _make_room(self, spared: Path) -> None:
        files = sorted(self._files(SUFFIX), key=lambda each: each[1].st_mtime_ns)
        room, held = self._room(), sum(found.st_size for _, found in files)
        for path, found in files:
            if held <= room:
                return
            if path != spared:
                path.unlink(missing_ok=True)
                held -= found.st_size

    def _files(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*{suffix}"):
            with suppress(FileNotFoundError):  # another process has just removed it
                yield path, path.stat()


@contextmanager
def partial_file(folder: Path) -> Iterator[Path]:
    """An empty file of a name of its own, which is gone at the end unless somebody has given it another name.

    The folder is made if need be. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix=PARTIAL, dir=folder)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
