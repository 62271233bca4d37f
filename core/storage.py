"""The store over fsspec: uploads, and what runs leave under runs/{run}/{fence}/, manifest last.

A location is a path relative to the store's root, or an absolute file:// URL (base models). On a local disk a
file appears whole or not at all: temporary name, fsync, rename.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import fsspec

from core.settings import settings

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file in the store; name is relative to the folder that was put."""

    name: str
    bytes: int
    sha256: str


class UploadWriter:
    """A file that is digested while it is written and appears at its location only by `commit`."""

    def __init__(self, storage: "Storage", location: str) -> None:
        self._storage, self.location = storage, location
        self._digest, self.bytes = hashlib.sha256(), 0
        self._temporary = f"{location}.part" if storage.root_folder else location
        self._file = storage.open_write(self._temporary)

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._digest.update(chunk)
        self.bytes += len(chunk)
        self._file.write(chunk)

    def commit(self) -> StoredFile:
        """Make the file appear; returns its size and digest."""
        _sync(self._file)
        self._file.close()
        if self._temporary != self.location:
            self._storage.rename(self._temporary, self.location)
        return StoredFile(self.location, self.bytes, self._digest.hexdigest())

    def abort(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._storage.delete(self._temporary)


class Storage:
    """One store; blocking calls, safe from several threads."""

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self.root_folder = Path(self._root) if protocol in ("file", "local") else None
        """The store's folder, where it is one on this machine."""

    def upload(self, location: str) -> UploadWriter:
        """Begin to write a file."""
        return UploadWriter(self, location)

    def put_folder(self, location: str, folder: Path) -> list[StoredFile]:
        """Copy a folder's files, then their manifest: a folder without one does not exist."""
        stored = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            writer = self.upload(f"{location}/{name}")
            with path.open("rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    writer.write(chunk)
            written = writer.commit()
            stored.append(StoredFile(name, written.bytes, written.sha256))
        manifest = self.upload(f"{location}/{MANIFEST}")
        manifest.write(json.dumps({"files": [asdict(file) for file in stored]}).encode())
        manifest.commit()
        return stored

    def fetch(self, location: str, target: Path) -> Path:
        """A local path with the file's or folder's content: itself where it is local, else a copy."""
        local = self.local_path(location)
        if local is not None:
            return local
        self._fs.get(self._path(location), str(target), recursive=True)
        return target

    def local_path(self, location: str) -> Path | None:
        """The file or folder itself, where it lies on this machine."""
        if location.startswith("file://"):
            return Path(location.removeprefix("file://"))
        return self.root_folder / location if self.root_folder else None

    def read_chunks(self, location: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes [start, end) of a file, in chunks."""
        with self.open_read(location) as file:
            file.seek(start)
            left = None if end is None else end - start
            while left is None or left > 0:
                chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk

    def open_read(self, location: str) -> IO[bytes]:
        """A seekable reader."""
        local = self.local_path(location)
        return local.open("rb") if local else self._fs.open(self._path(location), "rb")

    def open_write(self, location: str) -> Any:
        """A plain writer; `upload` is what callers want."""
        path = self._path(location)
        if self.root_folder:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        return self._fs.open(path, "wb")

    def rename(self, source: str, target: str) -> None:
        """Atomic on a local disk, and durable: the folder is synced too."""
        if not self.root_folder:
            self._fs.mv(self._path(source), self._path(target))
            return
        Path(self._path(source)).replace(self._path(target))
        _sync_folder(Path(self._path(target)).parent)

    def delete(self, location: str) -> None:
        """Remove a file or a folder; nothing happens where there is none."""
        path = self._path(location)
        if self.root_folder:
            if Path(path).is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                Path(path).unlink(missing_ok=True)
        elif self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def check(self) -> None:
        """Write and remove a small file; raises OSError where the store cannot be written."""
        writer = self.upload(f"probes/{os.getpid()}")
        writer.write(b"ok")
        writer.commit()
        self.delete(writer.location)

    def _path(self, location: str) -> str:
        if location.startswith("/") or ".." in location.split("/"):
            raise ValueError(f"not a location: {location}")
        return f"{self._root}/{location}"


def files_digest(files: list[StoredFile]) -> str:
    """SHA-256 over names, sizes and digests: the digest of an artifact of several files."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        digest.update(f"{file.name}\0{file.bytes}\0{file.sha256}\n".encode())
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """`files_digest` of a folder on this machine."""
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(StoredFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest))
    return files_digest(files)


@cache
def storage() -> Storage:
    """This process's store."""
    return Storage(settings().store_url)


def _sync(file: Any) -> None:
    file.flush()
    descriptor = getattr(file, "fileno", None)
    if descriptor is not None:
        os.fsync(descriptor())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
