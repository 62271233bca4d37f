"""How many threads a run computes with."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mpo.errors import UnusableModel
from mpo.estimates_shape import read_shape

SMALL = 2_000_000
"""Parameters up to which a model is computed by one thread. A second one must not spin where other processes
want the core, and to wake it for each of a small model's products gains less than it takes."""


def threads_for(threads: int, folders: Iterable[Path]) -> int:
    """As many as are given, 0 being torch's own choice; 1 where all models among the folders are small."""
    sizes = []
    for folder in folders:
        with suppress(UnusableModel):
            sizes.append(read_shape(folder).parameters)
    return 1 if sizes and max(sizes) <= SMALL else threads
