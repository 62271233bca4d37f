"""Reward gaps of a job's pairs: r(prompt, chosen) − r(prompt, rejected), by which they were split."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Flow, Item, Plan, Query, Reply, path, send
from mpo_client.downloads import download
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed
from mpo_client.tables import Rows, as_arrow, as_pandas, as_text

if TYPE_CHECKING:
    import pandas
    import pyarrow

Part = Literal["all", "easy", "difficult", "dropped"]
Order = Literal["gap", "-gap", "abs_gap", "-abs_gap"]
_PICTURES: Mapping[str, str] = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}
PICTURES = tuple(_PICTURES)
_COLUMNS = (
    *("id", "prompt", "chosen", "rejected", "reward_chosen", "reward_rejected"),
    *("gap", "part", "fold", "why"),
)


class RewardGaps(Reply):
    """Bins are [a, b), the last one closed; `below` and `above` count what lies outside.

    What no pair is there for is None.
    """

    job: str
    reward_model: str | None = None
    part: Part = "all"
    pairs: int
    sign: Literal["signed", "absolute"] = "signed"
    bin_edges: list[float]
    counts: list[int]
    below: int
    above: int
    accuracy: float | None = None
    accuracy_ci95: tuple[float, float] | None = None
    bin_accuracy: list[float | None] | None = None
    share_within_one: float | None = None
    quantiles: dict[str, float] | None = None
    mean: float | None = None
    std: float | None = None
    threshold: float | None = None
    easy: int
    difficult: int
    dropped: int
    scored_by: Literal["cross_fit", "held_out", "in_sample"]


class PartPreview(Reply):
    """What a split gives one part; None where it is empty."""

    pairs: int
    accuracy: float | None = None
    expected_accuracy: float | None = None
    mean_gap: float | None = None
    tokens: int | None = None


class SplitPreview(Reply):
    """What a split would give."""

    threshold: float
    easy: PartPreview
    difficult: PartPreview
    dropped: PartPreview


class Pair(Reply):
    """A scored pair, and the part that it belongs to. fold: which reward model scored it, from 1."""

    id: str
    prompt: JsonValue
    chosen: JsonValue
    rejected: JsonValue
    reward_chosen: float
    reward_rejected: float
    gap: float
    part: str
    fold: int | None = None
    why: str


class GapMethods:
    """What both clients can do with reward gaps.

    All raise Conflict with code `not_scored_yet` until the job's pairs are scored.
    """

    @answers
    def get(
        self,
        job_id: str,
        *,
        bins: int = 40,
        lower: float | None = None,
        upper: float | None = None,
        part: Part = "all",
    ) -> Plan[RewardGaps]:
        """The histogram. lower, upper: ends of the bins, in reward units; those of the gaps where None."""
        query: Query = {"bins": bins, "lower": lower, "upper": upper, "part": part}
        return send(Call("GET", _path(job_id), RewardGaps, query=query))

    @answers
    def save_picture(self, job_id: str, to: Path, *, bins: int = 40, part: Part = "all") -> Plan[None]:
        """The histogram as a file, by its ending: .png, .svg, or a table as .csv; else as PNG."""
        accept = _PICTURES.get(to.suffix.lower(), "image/png")
        return download(_path(job_id), to, query={"bins": bins, "part": part}, accept=accept)

    @answers
    def preview(
        self,
        job_id: str,
        *,
        threshold: float | None = None,
        quantile: float | None = None,
        easy_fraction: float | None = None,
    ) -> Plan[SplitPreview]:
        """What another split would give, by one of the three; the job's own where none is given."""
        query = {"threshold": threshold, "quantile": quantile, "easy_fraction": easy_fraction}
        return send(Call("GET", f"{_path(job_id)}/preview", SplitPreview, query=query))

    @iterates
    def pairs(
        self, job_id: str, *, part: Part = "all", order: Order | None = None, limit: int | None = None
    ) -> Flow[Pair]:
        """The scored pairs; in the data's order where none is given."""
        return _pairs(job_id, part, order, limit)

    @answers
    def pairs_as_arrow(
        self, job_id: str, *, part: Part = "all", order: Order | None = None, limit: int | None = None
    ) -> "Plan[pyarrow.Table]":
        """`pairs`, a row each; conversations as JSON text. Raises Missing without pyarrow."""
        return as_arrow((yield from _rows(_pairs(job_id, part, order, limit))), _COLUMNS)

    @answers
    def pairs_as_pandas(
        self, job_id: str, *, part: Part = "all", order: Order | None = None, limit: int | None = None
    ) -> "Plan[pandas.DataFrame]":
        """`pairs`, a row each; conversations as JSON text. Raises Missing without pandas."""
        return as_pandas((yield from _rows(_pairs(job_id, part, order, limit))), _COLUMNS)


class Gaps(Blocking, GapMethods):
    """Of a Client."""


class AsyncGaps(Awaiting, GapMethods):
    """Of an AsyncClient."""


def _path(job_id: str) -> str:
    return path("jobs", job_id, "reward-gaps")


def _pairs(job_id: str, part: Part, order: Order | None, limit: int | None) -> Flow[Pair]:
    return listed(path("jobs", job_id, "pairs"), Pair, query={"part": part, "order": order}, limit=limit)


def _rows(pairs: Flow[Pair]) -> Plan[Rows]:
    """The flow's items gathered, its steps passed on."""
    rows: Rows = []
    outcome = None
    while True:
        try:
            step = pairs.send(outcome)
        except StopIteration:
            return rows
        if isinstance(step, Item):
            pair = step.value.model_dump()
            texts = {name: as_text(pair[name]) for name in ("prompt", "chosen", "rejected")}
            rows.append({**pair, **texts})
            outcome = None
        else:
            outcome = yield step
