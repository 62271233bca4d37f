"""The store over fsspec: uploads, and what runs leave under runs/{run}/{fence}/, manifest last.

A location is a path relative to the store's root, or an absolute file:// URL (base models). A file appears
whole or not at all: on a local disk by temporary name, fsync, rename; on an object store by the last call.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import fsspec

from core.settings import settings
from core.stored_files import Entry, StoredFile
from core.uploading import UploadWriter, failures_named

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
PART_BYTES = 16 << 20
"""What an object store is sent at a time, and what a writer holds in memory; S3 takes 10,000 parts a file."""
READ_AHEAD_BYTES = 8 << 20
CONNECT_SECONDS = 5
ANSWER_SECONDS = 60


class Storage:
    """One store; blocking calls, safe from several threads.

    What the store does not do raises StoreFailed, whichever library serves it; what is not there raises
    FileNotFoundError. Both are OSErrors.
    """

    def __init__(self, url: str) -> None:
        # Listings change under us: other processes write to the same store.
        options: dict[str, Any] = {"use_listings_cache": False}
        if url.startswith("s3://"):
            options["config_kwargs"] = {"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS}
        self._fs, root = fsspec.core.url_to_fs(url, **options)
        self._root = str(root).rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self.root_folder = Path(self._root) if protocol in ("file", "local") else None
        """The store's folder, where it is one on this machine."""

    @property
    def remote(self) -> tuple[Any, str]:
        """fsspec's file system and the root in it, for what only an object store has."""
        return self._fs, self._root

    def upload(self, location: str) -> UploadWriter:
        """Begin to write a file."""
        path = self._path(location)
        if self.root_folder is None:
            return UploadWriter(location, lambda: self._fs.open(path, "wb", block_size=PART_BYTES))
        return UploadWriter(location, None, Path(path))

    def put_folder(self, location: str, folder: Path) -> list[StoredFile]:
        """Copy a folder's files, then their manifest: a folder without one does not exist."""
        stored = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as source:
                written = self._write(f"{location}/{name}", iter(lambda: source.read(CHUNK_BYTES), b""))
            stored.append(StoredFile(name, written.bytes, written.sha256))
        listed = json.dumps({"files": [asdict(file) for file in stored]}).encode()
        self._write(f"{location}/{MANIFEST}", iter([listed]))
        return stored

    def holds_folder(self, location: str) -> bool:
        """Whether a folder was put there to its end, and is not being deleted."""
        return self.exists(f"{location}/{MANIFEST}")

    def exists(self, location: str) -> bool:
        """Whether there is such a file or folder."""
        local = self.local_path(location)
        if local is not None:
            return local.exists()
        with failures_named(location):
            return bool(self._fs.exists(self._path(location)))

    def fetch(self, location: str, target: Path) -> Path:
        """A local path with the file's or folder's content: itself where it is local, else a copy.

        The copy appears whole: what broke off is not taken for it.
        """
        local = self.local_path(location)
        if local is not None:
            return local
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            with failures_named(location):
                self._fs.get(self._path(location), str(partial), recursive=True)
            partial.rename(target)
        finally:
            _remove(partial)
        return target

    def local_path(self, location: str) -> Path | None:
        """The file or folder itself, where it lies on this machine."""
        if location.startswith("file://"):
            return Path(location.removeprefix("file://"))
        return self.root_folder / location if self.root_folder else None

    def read_chunks(self, location: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes [start, end) of a file, in chunks. Opened at once: what is gone is told before the first."""
        return _chunks(self.open_read(location), location, start, end)

    def open_read(self, location: str) -> IO[bytes]:
        """A seekable reader."""
        local = self.local_path(location)
        with failures_named(location):
            if local is not None:
                return local.open("rb")
            opened: IO[bytes] = self._fs.open(self._path(location), "rb", block_size=READ_AHEAD_BYTES)
            return opened

    def names(self, location: str) -> list[str]:
        """Names of what lies directly in a folder, sorted; none where there is no such folder."""
        path = self._path(location)
        try:
            if self.root_folder:
                return sorted(entry.name for entry in os.scandir(path))
            with failures_named(location):
                listed = self._fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in listed} - {""})

    def entries(self, location: str) -> list[Entry]:
        """Every file in a folder and those below it, or the file itself; none where there is nothing."""
        path = self._path(location)
        if self.root_folder:
            place = Path(path)
            files = [place] if place.is_file() else [p for p in place.rglob("*") if not p.is_dir()]
            return [entry for file in files if (entry := _entry(file)) is not None]
        with failures_named(location):
            found = self._fs.find(path, detail=True).values()
        return [
            Entry(int(file["size"] or 0), file["LastModified"]) for file in found if file["type"] == "file"
        ]

    def delete(self, location: str) -> None:
        """Remove a file or a folder, its manifest first; nothing happens where there is none."""
        path = self._path(location)
        with failures_named(location):
            if self.root_folder:
                _remove(Path(path))
                return
            try:
                if self._fs.exists(f"{path}/{MANIFEST}"):
                    self._fs.rm_file(f"{path}/{MANIFEST}")
                self._fs.rm(path, recursive=True)
            except FileNotFoundError:
                return  # it was not there, or its last file was the manifest

    def drop_empty(self, location: str) -> None:
        """Remove a folder that nothing lies in; object stores have none."""
        if self.root_folder:
            try:
                Path(self._path(location)).rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                    raise

    def check(self) -> None:
        """Write and remove a small file; raises OSError where the store cannot be written."""
        # A name of its own: of several hosts the processes may have the same id.
        probe = f"probes/{secrets.token_hex(8)}"
        self._write(probe, iter([b"ok"]))
        self.delete(probe)

    def _write(self, location: str, chunks: Iterator[bytes]) -> StoredFile:
        writer = self.upload(location)
        try:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _path(self, location: str) -> str:
        if location.startswith("/") or ".." in location.split("/"):
            raise ValueError(f"not a location: {location}")
        return f"{self._root}/{location}"


def _entry(path: Path) -> Entry | None:
    """None for what has gone meanwhile."""
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return None
    return Entry(stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


@cache
def storage() -> Storage:
    """This process's store."""
    return Storage(settings().store_url)


def _chunks(file: IO[bytes], location: str, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = None if end is None else end - start
        while left is None or left > 0:
            with failures_named(location):
                chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


def _remove(path: Path) -> None:
    """A file, or a folder with its manifest first: what is half gone must not look whole."""
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    except FileNotFoundError:
        return  # somebody else removes it too
