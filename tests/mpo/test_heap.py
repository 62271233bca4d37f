"""Memory that a training frees and asks for again is not given back to the system in between."""

import json
import subprocess
import sys

ASKS = """
import ctypes, json, sys
from mpo.heap import keep_freed_memory

class Heap(ctypes.Structure):
    # glibc's struct mallinfo
    _fields_ = [(name, ctypes.c_int) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo.restype = Heap
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
    ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,))
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = libc.mallinfo().hblks
tensor = libc.malloc(16 << 20)
from_system = libc.mallinfo().hblks - before
libc.free(tensor)
print(json.dumps([from_system, libc.mallinfo().keepcost >> 20]))
"""


def _of_16_mib(how: str) -> list[int]:
    """Pieces that came from the system by themselves, and MiB at the heap's end once all is freed."""
    said = subprocess.run([sys.executable, "-c", ASKS, how], stdout=subprocess.PIPE, check=True)
    pieces: list[int] = json.loads(said.stdout)
    return pieces


def test_a_large_tensor_comes_from_the_heap_and_stays_there_when_it_is_freed() -> None:
    pieces, kept = _of_16_mib("kept")
    assert pieces == 0
    assert kept >= 16


def test_the_c_library_would_ask_the_system_for_it_and_give_it_back() -> None:
    pieces, kept = _of_16_mib("given back")
    assert pieces == 1
    assert kept < 16
