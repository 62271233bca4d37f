"""Reward gaps of a job's pairs: r(prompt, chosen) − r(prompt, rejected), by which they were split."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from mpo_client.transport import Call, Transport

Part = Literal["all", "easy", "difficult", "dropped"]


class RewardGaps(BaseModel):
    """Bins are [a, b), the last one closed; `below` and `above` count what lies outside."""

    job: str
    pairs: int
    bin_edges: list[float]
    counts: list[int]
    below: int
    above: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    share_within_one: float
    mean: float
    std: float
    threshold: float | None = None
    easy: int
    difficult: int
    dropped: int
    scored_by: Literal["cross_fit", "held_out", "in_sample"]


class Gaps:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, job_id: str, *, bins: int = 40, part: Part = "all") -> RewardGaps:
        """Raises Conflict with code `not_scored_yet` until the job's pairs are scored."""
        query = {"bins": bins, "part": part}
        return self._transport.send(Call("GET", _path(job_id), RewardGaps, query=query))

    def save_picture(self, job_id: str, to: Path, *, bins: int = 40, part: Part = "all") -> None:
        """The histogram as a PNG file."""
        self._transport.download(_path(job_id), to, query={"bins": bins, "part": part}, accept="image/png")


def _path(job_id: str) -> str:
    return f"/v1/jobs/{job_id}/reward-gaps"
