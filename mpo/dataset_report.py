"""What validation finds in an uploaded file. Torch-free."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from mpo.dataset_blocks import CONTENT_COLUMNS, Block
from mpo.dataset_rows import DatasetKind
from mpo.errors import BadRow

REPORTED_BAD_ROWS = 100
COUNTED_ANNOTATORS = 10_000
REPORTED_ANNOTATORS = 100
COUNTED_AT_ONCE = 2**17
LENGTHS_AT_ONCE = 2**15
"""Rows whose lengths wait to be counted, as most then occur more than once."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class BadRowReport:
    """One refused row: its line in the file, from 1 (of Parquet, its row), and the column in that line where
    it breaks off."""

    line: int
    column: int | None
    message: str


@dataclass(frozen=True)
class DatasetReport:
    """What a file holds. rows: the accepted ones. bad: the first 100 of `bad_rows`.

    duplicates: rows that repeat an earlier one word for word. conflicting: rows whose sides occur exchanged
    in another row. identical: rows whose responses are equal. lengths: quantiles, in characters, by column.
    length_baseline_accuracy: share of pairs with the longer response chosen, ties half. annotators: rows of
    the most frequent ones. complete: false where the file was not read to its end.
    """

    kind: DatasetKind
    format: str
    rows: int
    bad_rows: int
    bad: tuple[BadRowReport, ...]
    duplicates: int
    conflicting: int
    identical: int
    lengths: Mapping[str, Mapping[str, float]]
    length_baseline_accuracy: float | None
    annotators: Mapping[str, int]
    complete: bool

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        bad = [{"line": row.line, "column": row.column, "message": row.message} for row in self.bad]
        lengths = {column: dict(quantiles) for column, quantiles in self.lengths.items()}
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"bad": bad, "lengths": lengths, "annotators": dict(self.annotators)}


@dataclass
class ReportBuilder:
    """Counts rows as they come, in memory that hardly grows: eight bytes a row."""

    kind: DatasetKind
    format: str
    rows: int = 0
    bad_rows: int = 0
    complete: bool = True
    _bad: list[BadRowReport] = field(default_factory=list)
    _keys: "array[int]" = field(default_factory=lambda: array("Q"))
    _lengths: list[Counter[int]] = field(default_factory=list)
    _uncounted: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _uncounted_rows: int = 0
    _longer_chosen: float = 0.0
    _identical: int = 0
    _annotators: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lengths = [Counter() for _ in CONTENT_COLUMNS[self.kind]]

    @property
    def first_bad(self) -> BadRowReport:
        """The first refused row; there must be one."""
        return self._bad[0]

    def refuse(self, error: BadRow) -> None:
        """Counts a row that was refused."""
        self.bad_rows += 1
        if len(self._bad) < REPORTED_BAD_ROWS:
            self._bad.append(BadRowReport(error.line, error.column, error.message))

    def accept(self, block: Block) -> None:
        """Counts the accepted rows of a block."""
        self.rows += block.table.num_rows
        self._uncounted.append(block.lengths)
        self._uncounted_rows += block.table.num_rows
        if self._uncounted_rows >= LENGTHS_AT_ONCE:
            self._count_lengths()
        self._keys.frombytes(block.keys.tobytes())
        if self.kind != "preference":
            return
        chosen, rejected = block.table.column("chosen"), block.table.column("rejected")
        self._identical += pc.sum(pc.equal(chosen, rejected)).as_py()
        compared = np.sign(block.lengths[1] - block.lengths[2])
        self._longer_chosen += float((compared > 0).sum() + 0.5 * (compared == 0).sum())
        annotators = block.table.column("annotator")
        if annotators.null_count == len(annotators):
            return
        for found in pc.value_counts(annotators.drop_null()).to_pylist():
            if found["values"] in self._annotators or len(self._annotators) < COUNTED_ANNOTATORS:
                self._annotators[found["values"]] += found["counts"]

    def _count_lengths(self) -> None:
        waiting, self._uncounted, self._uncounted_rows = self._uncounted, [], 0
        for counter, lengths in zip(self._lengths, zip(*waiting, strict=True), strict=bool(waiting)):
            values, counts = np.unique(np.concatenate(lengths), return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                counter[value] += count

    def report(self) -> DatasetReport:
        """The report on all rows so far."""
        self._count_lengths()
        duplicates, conflicting = self._repetitions()
        lengths = {
            name: _quantiles(counter)
            for name, counter in zip(CONTENT_COLUMNS[self.kind], self._lengths, strict=True)
            if counter
        }
        compared = self.kind == "preference" and self.rows > 0
        return DatasetReport(
            kind=self.kind,
            format=self.format,
            rows=self.rows,
            bad_rows=self.bad_rows,
            bad=tuple(self._bad),
            duplicates=duplicates,
            conflicting=conflicting,
            identical=self._identical,
            lengths=lengths,
            length_baseline_accuracy=self._longer_chosen / self.rows if compared else None,
            annotators=dict(self._annotators.most_common(REPORTED_ANNOTATORS)),
            complete=self.complete,
        )

    def _repetitions(self) -> tuple[int, int]:
        """Rows that repeat an earlier one; rows whose sides occur exchanged in another."""
        if not self._keys:
            return 0, 0
        keys = np.frombuffer(self._keys, np.uint64)
        keys.sort()
        duplicates, conflicting, start = 0, 0, 0
        while start < len(keys):
            # In pieces, which end where a group of rows ends that differ by the order of their sides at most.
            stop = start + COUNTED_AT_ONCE
            if stop < len(keys):
                stop = int(np.searchsorted(keys, keys[stop] | np.uint64(1), side="right"))
            repeated, exchanged = _count_repetitions(keys[start:stop], self.kind == "preference")
            duplicates, conflicting, start = duplicates + repeated, conflicting + exchanged, stop
        return duplicates, conflicting


def _count_repetitions(keys: np.ndarray, of_pairs: bool) -> tuple[int, int]:
    duplicates = int((keys[1:] == keys[:-1]).sum())
    if not of_pairs:
        return duplicates, 0
    one = np.uint64(1)
    starts = np.flatnonzero(np.r_[True, (keys[1:] >> one) != (keys[:-1] >> one)])
    ends = np.r_[starts[1:], len(keys)]
    # Sorted, a group has both orders where its first and its last key differ.
    both = keys[starts] != keys[ends - 1]
    return duplicates, int((ends - starts)[both].sum())


def _quantiles(lengths: Counter[int]) -> dict[str, float]:
    """As NumPy's, linear, without writing every length out."""
    values, counts = np.array(sorted(lengths.items())).T
    upto = np.cumsum(counts)
    found = {}
    for share in QUANTILES:
        place = share * float(upto[-1] - 1)
        below, above = (
            values[np.searchsorted(upto, at, side="right")] for at in (int(place), -int(-place // 1))
        )
        found[f"{share:g}"] = float(below + (above - below) * (place % 1))
    return found
