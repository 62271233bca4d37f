"""Files that are on the disk, and not only in the system's memory, when a call returns. Torch-free."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """The same of every file and folder below, and of the folder itself."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_whole(path: Path, text: str) -> None:
    """Gives a file this text, in UTF-8, on the disk; killed anywhere here, it is the old one or the new."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)
