"""What validation finds in an uploaded file. Torch-free."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpo.dataset_rows import CanonicalRow, DatasetKind
from mpo.errors import BadRow
from mpo.records import Content

REPORTED_BAD_ROWS = 100
COUNTED_ANNOTATORS = 10_000
REPORTED_ANNOTATORS = 100
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

CONTENT_COLUMNS: Mapping[DatasetKind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
    "text": ("text",),
}
"""The columns of `CanonicalRow.contents`."""


@dataclass(frozen=True)
class BadRowReport:
    """One refused row: its line in the file, from 1, and the column in that line where JSON breaks off."""

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
    """Counts rows as they come, in memory that hardly grows: eight bytes a row and side."""

    kind: DatasetKind
    format: str
    rows: int = 0
    bad_rows: int = 0
    complete: bool = True
    _bad: list[BadRowReport] = field(default_factory=list)
    _hashes: list[np.ndarray] = field(default_factory=list)
    _exchanged: list[np.ndarray] = field(default_factory=list)
    _lengths: list[Counter[int]] = field(default_factory=list)
    _longer_chosen: float = 0.0
    _identical: int = 0
    _annotators: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lengths = [Counter() for _ in CONTENT_COLUMNS[self.kind]]

    def refuse(self, error: BadRow) -> None:
        """Counts a row that was refused."""
        self.bad_rows += 1
        if len(self._bad) < REPORTED_BAD_ROWS:
            self._bad.append(BadRowReport(error.line, error.column, error.message))

    def accept(self, rows: Sequence[CanonicalRow], columns: Sequence[Sequence[str]]) -> None:
        """Counts accepted rows. columns: their contents as `dump_content` gives them, a sequence a column."""
        self.rows += len(rows)
        contents = zip(*(row.contents for row in rows), strict=True)
        lengths = [[_length(content) for content in column] for column in contents]
        for counter, column in zip(self._lengths, lengths, strict=True):
            counter.update(column)
        # Python's own string hash: fast, 64 bits, and only compared within this process.
        self._hashes.append(_hashes(columns))
        if self.kind != "preference":
            return
        prompts, chosen, rejected = columns
        self._exchanged.append(_hashes((prompts, rejected, chosen)))
        self._identical += sum(map(str.__eq__, chosen, rejected))
        compared = np.sign(np.subtract(lengths[1], lengths[2]))
        self._longer_chosen += float((compared > 0).sum() + 0.5 * (compared == 0).sum())
        self._count_annotators(rows)

    def _count_annotators(self, rows: Sequence[CanonicalRow]) -> None:
        for row in rows:
            known = row.annotator in self._annotators or len(self._annotators) < COUNTED_ANNOTATORS
            if row.annotator is not None and known:
                self._annotators[row.annotator] += 1

    def report(self) -> DatasetReport:
        """The report on all rows so far."""
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
        if not self._hashes:
            return 0, 0
        hashes = np.concatenate(self._hashes)
        distinct = np.unique(hashes)
        if not self._exchanged:
            return len(hashes) - len(distinct), 0
        exchanged = np.concatenate(self._exchanged)
        found = np.minimum(np.searchsorted(distinct, exchanged), len(distinct) - 1)
        conflicting = (distinct[found] == exchanged) & (exchanged != hashes)
        return len(hashes) - len(distinct), int(conflicting.sum())


def _hashes(columns: Sequence[Sequence[str]]) -> np.ndarray:
    return np.fromiter(map(hash, zip(*columns, strict=True)), dtype=np.int64, count=len(columns[0]))


def _length(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(message["content"]) for message in content)


def _quantiles(lengths: Counter[int]) -> dict[str, float]:
    values, counts = np.array(sorted(lengths.items())).T
    found = np.quantile(np.repeat(values, counts), QUANTILES)
    return {f"{share:g}": float(value) for share, value in zip(QUANTILES, found, strict=True)}
