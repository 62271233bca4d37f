"""Datasets on the wire."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from app.wire import Body, Seconds, Storable, View

Kind = Literal["preference", "prompts", "text"]


class DatasetCreate(Body):
    """A dataset to be made. Its content follows."""

    name: Annotated[Storable, Field(min_length=1, max_length=200)]
    kind: Kind = "preference"
    max_bad_rows: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class DatasetError(View):
    """Why a dataset is invalid."""

    code: str
    message: str


class DatasetView(View):
    """An uploaded file and what validation made of it."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    kind: Kind
    status: Literal["awaiting_content", "validating", "ready", "invalid"]
    max_bad_rows: int
    format: str | None
    rows: int | None
    bad_rows: int | None
    bytes: int | None
    sha256: str | None
    created_at: Seconds
    error: DatasetError | None


class MessageView(BaseModel):
    """A turn of a conversation, as it was uploaded."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str


Content = str | list[MessageView]


class PreferenceRow(View):
    """Two responses to one prompt, the better one known."""

    id: str
    prompt: Content
    chosen: Content
    rejected: Content
    annotator: str | None = None
    margin: float | None = None
    weight: float | None = None
    source: str | None = None


class PromptRow(View):
    """A prompt alone."""

    id: str
    prompt: Content


class TextRow(View):
    """A text alone."""

    id: str
    text: str


DatasetRow = PreferenceRow | PromptRow | TextRow


class BadRowView(View):
    """A row that was refused; lines count from 1."""

    line: int
    column: int | None = None
    message: str


class ReportView(BaseModel):
    """What validation found; of the refused rows the first 100."""

    model_config = ConfigDict(extra="allow")

    object: Literal["dataset_report"] = "dataset_report"
    dataset: str
    rows: NonNegativeInt
    bad_rows: NonNegativeInt
    bad: list[BadRowView]
    duplicates: int | None = None
    conflicting: int | None = None
    identical: int | None = None
    lengths: dict[str, dict[str, float]] = {}
    length_baseline_accuracy: float | None = None
    annotators: dict[str, Any] = {}
    tokens: dict[str, dict[str, float]] | None = Field(
        None, description="With `model`: quantiles of lengths in its tokens, of `sampled_rows` rows."
    )
    sampled_rows: int | None = None
    shared_prompts: int | None = Field(
        None, description="With `against`: distinct prompts that the other dataset holds too."
    )
