"""What every noun's schemas share: strict bodies, views, times in Unix seconds."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


class Body(BaseModel):
    """A request's body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class View(BaseModel):
    """What the wire shows of a row."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


def _seconds(value: object) -> object:
    return int(value.timestamp()) if isinstance(value, datetime) else value


def _storable(value: str) -> str:
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("should hold no NUL character and no lone surrogate")
    return value


Seconds = Annotated[int, BeforeValidator(_seconds)]
"""A moment in Unix seconds; takes a datetime."""

Storable = Annotated[str, AfterValidator(_storable)]
"""A string that the database can keep."""


class Deleted(View):
    """The object is gone."""

    id: str
    object: Literal["dataset", "job", "model", "api_key", "comparison"]
    deleted: Literal[True] = True
