"""What files of safetensors say of their tensors before any is read. Torch-free.

The package `safetensors` is the workers' alone: an API process, which estimates, does without it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

LENGTH_BYTES = 8


def tensor_shapes(path: Path) -> dict[str, Sequence[int]]:
    """Shapes of the tensors in a file, by name, from the JSON that it begins with.

    Raises OSError, ValueError, LookupError, TypeError or AttributeError where it is no such file.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(LENGTH_BYTES), "little")
        # A length that a file which is something else seems to give may be any.
        header = json.loads(file.read(min(size, path.stat().st_size)))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
