"""Models on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.wire import Body, Seconds, Storable, View

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Kind = Literal["policy", "reward_model"]


class ModelCreate(Body):
    """A folder in Hugging Face format, to be known by a name."""

    name: Annotated[str, Field(pattern=NAME)]
    path: Annotated[Storable, Field(min_length=1, max_length=4096, description="A folder on the server.")]


class ModelView(View):
    """A base model, or what a job's stage has trained: `job_…:stage`."""

    id: str
    object: Literal["model"] = "model"
    created: Seconds
    owned_by: str
    kind: Kind
    base: str | None
    job: str | None
    stage: str | None


class FileView(View):
    """A file of a model's folder."""

    name: str
    bytes: int
    sha256: str


class FileList(BaseModel):
    """The files that make a folder which `from_pretrained` loads."""

    object: Literal["list"] = "list"
    data: list[FileView]
