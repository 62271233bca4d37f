"""What lies in the store: a file's size and digest, and the digest of several."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True)
class StoredFile:
    """A file in the store; name is relative to the folder that was put."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A file's size, and when it was last written, by the store's clock."""

    bytes: int
    modified: datetime


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
