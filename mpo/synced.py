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
