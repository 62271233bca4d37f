"""The scored pairs of a job, page by page, in the order of their gaps or of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.artifacts.queries import PairQuery
from app.artifacts.schemas import PairView
from app.artifacts.scored_job import ScoredJob
from app.pagination import Page
from core.errors import Unprocessable
from mpo.gap_cuts import WHY, cut_gaps
from mpo.gap_index import Floats, Integers
from mpo.parts import TARGETS, Order, Part, TargetPart
from mpo.records import load_content, read_rows
from mpo.split import match_scores

FLIPPED = "negative_flip"


class PairSource(Protocol):
    """The pairs of a part: their ids by row, the rows in an order, and the pairs of rows."""

    def row_of(self, id_: str) -> int | None: ...

    def order(self, order: Order | None) -> Integers: ...

    def pairs(self, rows: Sequence[int]) -> list[PairView]: ...


def list_pairs(scored: ScoredJob, query: PairQuery) -> Page[PairView]:
    """A page of a part's pairs; raises Unprocessable where `after` is none of them."""
    source: PairSource = (
        SplitPairs(scored, query.part) if scored.parts else PlannedPairs.of(scored, query.part)
    )
    order, start = source.order(query.order), 0
    if query.after is not None:
        row = source.row_of(query.after)
        if row is None:
            raise Unprocessable("after should be the id of a pair of this list", loc=("query", "after"))
        start = int(np.flatnonzero(order == row)[0]) + 1
    rows = [int(row) for row in order[start : start + query.limit]]
    pairs = source.pairs(rows) if rows else []
    return Page(
        data=pairs,
        first_id=pairs[0].id if pairs else None,
        last_id=pairs[-1].id if pairs else None,
        has_more=start + query.limit < len(order),
    )


class SplitPairs:
    """Pairs of a split that has run, read from its files: only the row groups of the page."""

    def __init__(self, scored: ScoredJob, part: Part) -> None:
        assert scored.parts is not None
        self._files, self._part = scored.parts, part
        self._gaps = scored.index().parts[part]
        self._file = self._files["split" if part == "all" else part]

    def row_of(self, id_: str) -> int | None:
        """The row in the part's file (of `all`: in the split's list)."""
        row = pc.index(pq.read_table(self._file, columns=["id"]).column("id"), id_).as_py()
        return None if row < 0 else int(row)

    def order(self, order: Order | None) -> Integers:
        """Rows in that order: of the index, as it lies in the store."""
        if order is None:
            return np.arange(len(self._gaps.gaps))
        rising = self._gaps.absolute_order if order.endswith("abs_gap") else self._gaps.order
        return rising[::-1] if order.startswith("-") else rising

    def pairs(self, rows: Sequence[int]) -> list[PairView]:
        """The pairs as the part holds them; in `all` as scored, even where the split exchanged sides."""
        if self._part == "all":
            placed = read_rows(self._file, rows).select(["id", "part", "why", "row"]).to_pylist()
        else:
            placed = self._placed(rows)
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for part in TARGETS:
            here = [place["row"] for place in placed if place["part"] == part]
            if here:
                table = read_rows(self._files[part], here).to_pylist()
                found |= {(part, row): values for row, values in zip(here, table, strict=True)}
        return [self._pair(place, found[place["part"], place["row"]]) for place in placed]

    def _placed(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        ids = read_rows(self._file, rows).column("id").to_pylist()
        listed = pq.read_table(self._files["split"], columns=["id", "why"], filters=[("id", "in", ids)])
        why = dict(zip(*(column.to_pylist() for column in listed.columns), strict=True)) if ids else {}
        return [{"part": self._part, "why": why[id_], "row": row} for id_, row in zip(ids, rows, strict=True)]

    def _pair(self, place: Mapping[str, Any], values: Mapping[str, Any]) -> PairView:
        exchanged = self._part == "all" and place["why"] == FLIPPED
        return _view(values, place["part"], place["why"], exchanged=exchanged)


@dataclass(frozen=True)
class PlannedPairs:
    """Pairs that are scored and not yet split, parted as the split will part them.

    members: rows, in the scores, of the part's pairs, rising; gaps: (n,), of every score, signed as the part
    will hold them; part, why: (n,), indices of `TARGETS`, `WHY`.
    """

    scored: ScoredJob
    members: Integers
    gaps: Floats
    part: Integers
    why: Integers
    exchange: bool

    @classmethod
    def of(cls, scored: ScoredJob, part: Part) -> "PlannedPairs":
        """Cut the sorted gaps as the split's configuration says."""
        rising = scored.index().parts["all"]
        parts, why = np.zeros((2, len(rising.gaps)), np.int64)
        for cut in cut_gaps(rising.gaps, scored.split)[1]:
            parts[rising.order[cut.start : cut.stop]] = TARGETS.index(cut.part)
            why[rising.order[cut.start : cut.stop]] = WHY.index(cut.why)
        gaps, exchange = scored.read_scores().gaps, part != "all"
        if exchange:
            gaps = np.where(why == WHY.index(FLIPPED), -gaps, gaps)
        members = np.arange(len(gaps)) if part == "all" else np.flatnonzero(parts == TARGETS.index(part))
        return cls(scored, members, gaps, parts, why, exchange)

    def row_of(self, id_: str) -> int | None:
        """The row in the scores, if the pair is in the part."""
        ids = self.scored.read_scores().ids
        row = ids.index(id_) if id_ in ids else -1
        return row if row >= 0 and row in self.members else None

    def order(self, order: Order | None) -> Integers:
        """Rows of the scores in that order."""
        if order is None:
            return self.members
        values = self.gaps[self.members]
        values = np.abs(values) if order.endswith("abs_gap") else values
        rising = self.members[np.argsort(values, kind="stable")]
        return rising[::-1] if order.startswith("-") else rising

    def pairs(self, rows: Sequence[int]) -> list[PairView]:
        """The pairs of these rows, their texts read from the data."""
        scores, found = self.scored.read_scores(), []
        data = self.scored.data()
        places = match_scores(data, scores)
        data_row = {int(place): row for row, place in enumerate(places) if place >= 0}
        texts = read_rows(data, [data_row[row] for row in rows]).to_pylist()
        for row, values in zip(rows, texts, strict=True):
            why = WHY[self.why[row]]
            numbers = {
                "reward_chosen": float(scores.reward_chosen[row]),
                "reward_rejected": float(scores.reward_rejected[row]),
                "gap": float(scores.gaps[row]),
                "fold": scores.folds[row],
            }
            exchanged = self.exchange and why == FLIPPED
            found.append(_view({**values, **numbers}, TARGETS[self.part[row]], why, exchanged=exchanged))
        return found


def _view(values: Mapping[str, Any], part: TargetPart, why: str, *, exchanged: bool) -> PairView:
    """A pair from its columns; exchanged: with its sides the other way round than the columns say."""
    sides = ("rejected", "chosen") if exchanged else ("chosen", "rejected")
    chosen, rejected = (load_content(values[side], values["form"]) for side in sides)
    reward_chosen, reward_rejected = (values[f"reward_{side}"] for side in sides)
    return PairView(
        id=values["id"],
        prompt=load_content(values["prompt"], values["form"]),
        chosen=chosen,
        rejected=rejected,
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
        gap=-values["gap"] if exchanged else values["gap"],
        part=part,
        fold=values["fold"],
        why=why,
    )
