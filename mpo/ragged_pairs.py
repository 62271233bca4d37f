"""Pairs as token ids in Arrow's ragged arrays: read from a mapped file, made into lists one pair at a time.

A list of Python's ints takes 8 bytes a token for the pointer alone; an array takes 4, and of a mapped file
the system keeps in memory what is read, once for all processes that read it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, islice
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mpo.tokenization import BATCH_PAIRS, EncodedPair, Encoding, EncodingCounts

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_FLAGS = ("chosen_terminated", "rejected_terminated", "prompt_cut", "joint_differs")
SCHEMA = pa.schema(
    [("id", pa.string())]
    + [(name, pa.list_(pa.int32())) for name in _IDS]
    + [(name, pa.bool_()) for name in _FLAGS]
)
KEY = "key"
"""Name of the schema's metadata that says what a file holds the ids of."""


class OtherTokens(ValueError):
    """A file of ids that is not the one that was looked for."""


def write_encodings(sink: pa.NativeFile, encodings: Iterable[Encoding], key: str) -> None:
    """Writes encodings as an Arrow IPC file, a batch in memory at a time. Raises OSError."""
    remaining = iter(encodings)
    with pa.ipc.new_file(sink, SCHEMA.with_metadata({KEY: key})) as writer:
        while batch := list(islice(remaining, BATCH_PAIRS)):
            writer.write_batch(_record_batch(batch))


def _record_batch(encodings: Sequence[Encoding]) -> pa.RecordBatch:
    columns = [[getattr(each.pair, name) for each in encodings] for name in ("id", *_IDS, *_FLAGS[:2])]
    columns += [[getattr(each, name) for each in encodings] for name in _FLAGS[2:]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class RaggedIds(Sequence[list[int]]):
    """Token ids of one part of each pair (n,), as lists that are made when they are asked for.

    rows: numbers of the arrays' rows that it consists of, in order; None = all.
    """

    def __init__(self, arrays: Sequence[pa.ListArray], rows: Integers | None = None) -> None:
        self._rows = rows
        # Views of the arrays' own memory.
        self._chunks = [(array.offsets.to_numpy(), array.values.to_numpy()) for array in arrays]
        self._starts = [0, *accumulate(map(len, arrays))]

    @cached_property
    def lengths(self) -> Integers:
        """Tokens of each: (n,). No id is read."""
        parts = [np.diff(offsets).astype(np.int64) for offsets, _ in self._chunks]
        whole = np.concatenate([np.zeros(0, np.int64), *parts])
        return whole if self._rows is None else whole[self._rows]

    def __len__(self) -> int:
        return self._starts[-1] if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[int]]: ...
    def __getitem__(self, place: int | slice) -> list[int] | list[list[int]]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        row = place if self._rows is None else int(self._rows[place])
        number = bisect_right(self._starts, row) - 1
        (offsets, values), inside = self._chunks[number], row - self._starts[number]
        ids: list[int] = values[offsets[inside] : offsets[inside + 1]].tolist()
        return ids


class PairLengths(NamedTuple):
    """Tokens of the parts of each pair: (n,) each."""

    prompts: Integers
    chosen: Integers
    rejected: Integers

    @property
    def tokens(self) -> list[int]:
        """Of the prompt and of both responses."""
        counts: list[int] = (self.prompts + self.chosen + self.rejected).tolist()
        return counts

    @property
    def longest(self) -> list[int]:
        """Of each pair's longer sequence: of the prompt and the longer response."""
        counts: list[int] = (self.prompts + np.maximum(self.chosen, self.rejected)).tolist()
        return counts


class RaggedPairs(Sequence[EncodedPair]):
    """Encoded pairs over record batches of `SCHEMA`; a pair's lists are made when it is asked for.

    rows: numbers of the batches' rows that it consists of, in order; None = all.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], rows: Integers | None = None) -> None:
        self._batches, self._rows = batches, rows
        self.prompts, self.chosen, self.rejected = (
            RaggedIds([batch.column(name) for batch in batches], rows) for name in _IDS
        )

    def take(self, rows: Sequence[int] | Integers) -> "RaggedPairs":
        """The pairs of these numbers, of the same arrays."""
        numbers = np.asarray(rows, np.int64)
        return RaggedPairs(self._batches, numbers if self._rows is None else self._rows[numbers])

    @property
    def ids(self) -> list[str]:
        """Of the pairs."""
        ids: list[str] = self._ids.to_pylist()
        return ids

    @property
    def lengths(self) -> PairLengths:
        """Tokens of the pairs' parts. No id of a token is read."""
        return PairLengths(self.prompts.lengths, self.chosen.lengths, self.rejected.lengths)

    def counts(self) -> EncodingCounts:
        """What encoding did to how many of these pairs."""
        return EncodingCounts(
            pairs=len(self),
            prompts_cut=int(self._flags["prompt_cut"].sum()),
            chosen_cut=int((~self._flags["chosen_terminated"]).sum()),
            rejected_cut=int((~self._flags["rejected_terminated"]).sum()),
            joint_differs=int(self._flags["joint_differs"].sum()),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, place: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, place: slice) -> "RaggedPairs": ...
    def __getitem__(self, place: "int | slice") -> "EncodedPair | RaggedPairs":
        if isinstance(place, slice):
            return self.take(range(*place.indices(len(self))))
        ids, ended = (self.prompts[place], self.chosen[place], self.rejected[place]), self._flags
        return EncodedPair(
            self._ids[place].as_py(),
            *ids,
            bool(ended["chosen_terminated"][place]),
            bool(ended["rejected_terminated"][place]),
        )

    @cached_property
    def _ids(self) -> pa.Array:
        # In one piece: to look one up among many pieces takes as long as there are pieces.
        return self._column("id").combine_chunks()

    @cached_property
    def _flags(self) -> dict[str, Flags]:
        return {name: self._column(name).to_numpy() for name in _FLAGS}

    def _column(self, name: str) -> pa.ChunkedArray:
        whole = pa.chunked_array([batch.column(name) for batch in self._batches], SCHEMA.field(name).type)
        return whole if self._rows is None else whole.take(pa.array(self._rows))


def read_encodings(source: pa.NativeFile, key: str) -> RaggedPairs:
    """The pairs of a file that `write_encodings` wrote; a mapped one stays where it is, and is not read.

    Raises OtherTokens where the file is of another key, OSError or pyarrow's ArrowException where it is cut
    off or no such file.
    """
    reader = pa.ipc.open_file(source)
    if reader.schema.metadata != {KEY.encode(): key.encode()} or not reader.schema.equals(SCHEMA):
        raise OtherTokens(key)
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate()
    return RaggedPairs(batches)


def take_pairs(pairs: Sequence[EncodedPair], rows: Sequence[int]) -> Sequence[EncodedPair]:
    """The pairs of these numbers; of ragged ones nothing is read."""
    return pairs.take(rows) if isinstance(pairs, RaggedPairs) else [pairs[row] for row in rows]


def ids_of(pairs: Sequence[EncodedPair]) -> Sequence[str]:
    """Ids of pairs."""
    return pairs.ids if isinstance(pairs, RaggedPairs) else [pair.id for pair in pairs]


def lengths_of(pairs: Sequence[EncodedPair]) -> PairLengths:
    """Tokens of pairs; of ragged ones no id is read."""
    if isinstance(pairs, RaggedPairs):
        return pairs.lengths
    parts = [(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    return PairLengths(*np.array(parts, np.int64).reshape(-1, 3).T)


def token_counts(rows: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each row; of ragged ones no id is read."""
    if isinstance(rows, RaggedIds):
        counts: list[int] = rows.lengths.tolist()
        return counts
    return list(map(len, rows))
