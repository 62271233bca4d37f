"""Where a training's numbers lie: in memory that is asked for once, and not page by page."""

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of them, from its malloc.h."""
IN_ONE_PIECE = 2**25
"""Bytes up to which memory is taken from the heap: the most that glibc allows. More comes from the system."""
KEPT_FREE = 2**31 - 1
"""Bytes at the end of the heap that may stay free: the most that the call can say."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for as long as it lives; False where its C library cannot.

    glibc gives large tensors back to the system as soon as they are freed, and a step that asks for as much
    again has it cleared page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, IN_ONE_PIECE)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_FREE))


def take_into_memory(weights: "Iterable[nn.Parameter]") -> None:
    """Has weights on a CPU lie in this process's own memory, and no longer in the file they were loaded from.

    That is mapped, so that the first step would copy them as it writes, page by page: ten times as long.
    """
    for weight in weights:
        if weight.device.type == "cpu":
            weight.data = weight.data.clone()
