"""Artifacts, and what is read out of them, on the wire."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.wire import Seconds, View
from mpo.parts import Part, TargetPart


class Turn(BaseModel):
    """A message of a conversation, as it was uploaded."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str


class InputView(View):
    """What an artifact was made from."""

    name: str
    kind: Literal["artifact", "dataset", "model"]
    id: str
    sha256: str


class FileView(View):
    """A file of an artifact."""

    name: str
    bytes: int
    sha256: str


class ArtifactView(View):
    """An output of a run, and where it comes from."""

    id: str
    object: Literal["artifact"] = "artifact"
    kind: str
    output: str
    key: str
    sha256: str
    bytes: int
    files: list[FileView]
    run_id: str
    job_id: str | None
    config: dict[str, Any]
    inputs: list[InputView]
    versions: dict[str, str]
    hardware: str
    wall_seconds: float
    peak_memory_bytes: int
    created_at: Seconds


class RewardGaps(BaseModel):
    """Histogram of the reward gaps of a job's scored pairs. Bins are [a, b), the last one closed."""

    object: Literal["reward_gaps"] = "reward_gaps"
    job: str
    reward_model: str | None
    part: Part
    pairs: int
    sign: Literal["signed", "absolute"]
    bin_edges: list[float]
    counts: list[int]
    below: int
    above: int
    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None
    bin_accuracy: list[float | None] | None
    share_within_one: float | None
    quantiles: dict[str, float] | None
    mean: float | None
    std: float | None
    threshold: float
    easy: int
    difficult: int
    dropped: int
    scored_by: str


class PartView(View):
    """What a split gives one part. Accuracy and gap are null for an empty part."""

    pairs: int
    accuracy: float | None
    expected_accuracy: float | None
    mean_gap: float | None
    tokens: int | None


class SplitPreviewView(View):
    """What a split would give."""

    threshold: float
    easy: PartView
    difficult: PartView
    dropped: PartView


class PairView(BaseModel):
    """A scored pair. part and why: of the job's split; before it has run, those of the spec's."""

    id: str
    prompt: str | list[Turn]
    chosen: str | list[Turn]
    rejected: str | list[Turn]
    reward_chosen: float
    reward_rejected: float
    gap: float
    part: TargetPart
    fold: int | None
    why: str
