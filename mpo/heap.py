"""What the C library does with memory that is freed: a training asks for the same again at every step."""

import ctypes

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
