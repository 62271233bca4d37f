"""Which ids an upload has taken: uploaded ones, and the numbers of rows that brought none. Torch-free."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mpo.dataset_blocks import Block, hashes
from mpo.errors import BadRow

REPEATED = 'The column "id" repeats that of an earlier row.'


class HashSet:
    """64-bit numbers, eight bytes each: sorted runs, of which each is more than twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, values: np.ndarray) -> None:
        """Takes numbers that it does not hold yet."""
        if not len(values):
            return
        run = np.sort(values)
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")
        self._runs.append(run)

    def contains(self, values: np.ndarray) -> np.ndarray:
        """Which of these it holds."""
        found = np.zeros(len(values), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, values), len(run) - 1)
            found |= run[at] == values
        return found


class Ids:
    """The ids taken so far. An id is known by its 64-bit hash: of ten million different ones, two are
    mistaken for each other about once in 400,000 files, and then a row is refused."""

    def __init__(self) -> None:
        self._rows = 0
        self._uploaded = HashSet()
        # A byte a row: whether it is named by its number.
        self._numbered = bytearray()

    def number(self, block: Block) -> Block:
        """The block with an id for each accepted row; those whose id is taken are refused."""
        uploaded = block.table.column("id")
        numbers = self._rows + block.offsets
        self._rows += block.rows
        self._numbered.extend(bytes(block.rows))
        ids = pa.array(numbers).cast(pa.string())
        named = np.zeros(len(numbers), bool)
        if uploaded.null_count < len(numbers):
            uploaded = uploaded.combine_chunks()
            named, ids = ~np.asarray(uploaded.is_null()), pc.coalesce(uploaded, ids)
        if named.any() or self._uploaded:
            block, ids, numbers, named = self._without_repeated(block, ids, numbers, named)
        np.frombuffer(self._numbered, np.uint8)[numbers[~named]] = 1
        column = block.table.schema.get_field_index("id")
        block.table = block.table.set_column(column, block.table.schema.field("id"), ids)
        return block

    def _without_repeated(
        self, block: Block, ids: pa.Array, numbers: np.ndarray, named: np.ndarray
    ) -> tuple[Block, pa.Array, np.ndarray, np.ndarray]:
        texts = ids.to_numpy(zero_copy_only=False)
        found = hashes(texts, len(texts))
        taken = self._uploaded.contains(found)
        taken[named] |= np.fromiter((self._is_number_of_a_row(text) for text in texts[named]), bool)
        if not taken.any() and len(np.unique(found)) == len(found):
            self._uploaded.add(found[named])
            return block, ids, numbers, named
        fresh = _first_takers(found, taken)
        for at, line in zip(block.offsets[~fresh], block.lines[~fresh], strict=True):
            block.bad.append((int(at), BadRow(REPEATED, line=int(line))))
        block.bad.sort(key=lambda bad: bad[0])
        self._uploaded.add(found[fresh & named])
        return block.keep(fresh), ids.filter(pa.array(fresh)), numbers[fresh], named[fresh]

    def _is_number_of_a_row(self, id_: str) -> bool:
        number = int(id_) if id_.isascii() and id_.isdecimal() and len(id_) < 16 else -1
        return 0 <= number < len(self._numbered) and str(number) == id_ and bool(self._numbered[number])


def _first_takers(values: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Which rows take their id: the first of each that nobody before the block has."""
    fresh, seen = np.zeros(len(values), bool), set()
    for at, (value, is_taken) in enumerate(zip(values.tolist(), taken.tolist(), strict=True)):
        if not is_taken and value not in seen:
            seen.add(value)
            fresh[at] = True
    return fresh
