"""Bodies into files: by and by, checked, and never half there under their own name."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from mpo_client.calls import Call, Plan, Query, Reply, chunks
from mpo_client.errors import Damaged

OnBytes = Callable[[int], None]


def download(
    path: str,
    to: Path,
    *,
    query: Query | None = None,
    accept: str = "application/octet-stream",
    sha256: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Plan[None]:
    """Into a file. Raises Damaged where its digest is another; a broken download leaves no file of that name.

    on_bytes: is told how many bytes each chunk has.
    """
    partial = to.with_name(f"{to.name}.partial")
    digest = hashlib.sha256()
    call = Call("GET", path, Reply, query=query or {}, headers={"Accept": accept})
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(partial.unlink, missing_ok=True)
        with partial.open("wb") as file:

            def take(chunk: bytes) -> None:
                file.write(chunk)
                digest.update(chunk)
                if on_bytes is not None:
                    on_bytes(len(chunk))

            yield from chunks(call, take)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise Damaged(str(to))
        partial.replace(to)


def digest_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
