"""Files against rows: none that nobody names, none missing. Knows the store's layout, not the sweeper."""

from pathlib import PurePosixPath
from subprocess import CalledProcessError

from experiments.chaos.checks import Finding
from experiments.chaos.stack import Stack

_UPLOADS = "SELECT location FROM datasets WHERE deleted_at IS NULL AND location IS NOT NULL"
_ARTIFACTS = "SELECT location, files FROM artifacts WHERE deleted_at IS NULL"
_CHECKPOINTS = "SELECT checkpoint ->> 'location' AS location FROM runs WHERE checkpoint IS NOT NULL"


def no_orphan_file(stack: Stack) -> Finding:
    """After a sweep without grace."""
    promise = "no file is left that no row names"
    try:
        stack.sweep()
    except CalledProcessError as error:
        return Finding(promise, f"the sweep ended with {error.returncode}", [error.stderr[-2000:]])
    store = stack.state.store
    there = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    named = {row.location for row in stack.sql(_UPLOADS)}
    folders = {row.location for row in stack.sql(_CHECKPOINTS)}
    for row in stack.sql(_ARTIFACTS):
        # An output is a file of its own, or a folder of files.
        named.update(
            [row.location] if row.location in there else [f"{row.location}/{f['name']}" for f in row.files]
        )
        # Beside the outputs lies what was published with them: the manifest, a summary.
        folders.add("/".join(PurePosixPath(row.location).parts[:4]))
    missing = [f"missing: {name}" for name in sorted(named - there)]
    orphans = [f"orphan: {name}" for name in sorted(there - named) if not _is_below(name, folders)]
    scratch = [f"scratch: {path.name}" for path in stack.state.scratch.glob("run_*")]
    return Finding(promise, f"{len(there)} files", missing + orphans + scratch)


def _is_below(name: str, folders: set[str]) -> bool:
    return any(parent.as_posix() in folders for parent in PurePosixPath(name).parents)
