"""HH-RLHF transcripts, whole columns of them at once: a prompt that both sides begin with, and two responses.
Torch-free.
"""

import numpy as np
import pyarrow as pa

from mpo.dataset_rows import ASSISTANT
from mpo.records import shared_prefix

_OPENING = ASSISTANT.encode()
_TRIES = 4
"""Openings of an assistant's turn that are tried as a prompt's end before common beginnings are measured."""


def split_transcripts(chosen: pa.Array | None, rejected: pa.Array | None) -> dict[str, pa.Array]:
    """The columns prompt, chosen and rejected of two columns of transcripts, as `canonical_row` has them;
    none where they are not both strings in every row, or where a row has no prompt."""
    sides = [side for side in (chosen, rejected) if side is not None and pa.types.is_string(side.type)]
    if len(sides) < 2 or any(side.null_count for side in sides):
        return {}
    bounds, texts = zip(*(offsets_and_bytes(side) for side in sides), strict=True)
    ends = _prompt_sizes(bounds, (texts[0].tobytes(), texts[1].tobytes()))
    if not ends.all():
        return {}
    halves = [_halves(starts, text, ends) for starts, text in zip(bounds, texts, strict=True)]
    first, second = (pa.array(np.arange(start, 2 * len(ends), 2)) for start in (0, 1))
    return {
        "prompt": halves[0].take(first),
        "chosen": halves[0].take(second),
        "rejected": halves[1].take(second),
    }


def _prompt_sizes(bounds: tuple[np.ndarray, ...], texts: tuple[bytes, bytes]) -> np.ndarray:
    """Bytes of each row's prompt, 0 where it has none. In bytes and in characters it is the same text, as it
    ends with ASCII."""
    (left, right), (ours, theirs) = texts, (starts.tolist() for starts in bounds)
    rows = zip(ours, ours[1:], theirs, theirs[1:], strict=False)
    sizes = (_prompt_size(left, start, stop, right, other, end) for start, stop, other, end in rows)
    return np.fromiter(sizes, np.int32, len(ours) - 1)


def _prompt_size(left: bytes, start: int, stop: int, right: bytes, other: int, end: int) -> int:
    at = stop
    for _ in range(_TRIES):
        at = left.rfind(_OPENING, start, at)
        size = at + len(_OPENING) - start
        if at < 0:
            return 0
        if size <= end - other and left[start : start + size] == right[other : other + size]:
            return size
    shared = shared_prefix(left[start:stop], right[other:end])
    at = shared.rfind(_OPENING)
    return 0 if at < 0 else at + len(_OPENING)


def _halves(starts: np.ndarray, texts: np.ndarray, sizes: np.ndarray) -> pa.Array:
    """The texts, each cut in two, one half after the other, without a copy."""
    cuts = np.empty(2 * len(sizes) + 1, np.int32)
    cuts[0::2], cuts[1::2] = starts, starts[:-1] + sizes
    return pa.StringArray.from_buffers(2 * len(sizes), pa.py_buffer(cuts), pa.py_buffer(texts))


def offsets_and_bytes(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where each text of a column begins, and the last one ends, in the bytes of all."""
    _, offsets, texts = column.buffers()
    if texts is None or offsets is None:
        return np.zeros(len(column) + 1, np.int32), np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return bounds - bounds[0], np.frombuffer(texts, np.uint8)[bounds[0] : bounds[-1]]
