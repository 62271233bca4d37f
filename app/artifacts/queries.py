"""What is asked of a job's scores."""

from dataclasses import dataclass

from mpo.parts import Order, Part


@dataclass(frozen=True)
class GapQuery:
    """Which histogram is asked for. lower, upper: ends of the bins, in reward units; None = the extremes."""

    bins: int = 40
    lower: float | None = None
    upper: float | None = None
    part: Part = "all"


@dataclass(frozen=True)
class PairQuery:
    """Which page is asked for. order: None = the data's; after: the id of the page before's last pair."""

    part: Part = "all"
    order: Order | None = None
    after: str | None = None
    limit: int = 20
