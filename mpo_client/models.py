"""Models: those registered, and those that jobs have made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mpo_client.calls import Call, Deleted, Flow, Plan, Reply, path, send
from mpo_client.downloads import digest_of, download
from mpo_client.errors import ClientError
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed

Form = Literal["merged", "adapter"]
OnFile = Callable[["ModelFile", int], None]


class Model(Reply):
    """A base model, or `job_…:stage`."""

    id: str
    kind: Literal["policy", "reward_model"] | None = None
    created: int | None = None
    owned_by: str | None = None
    base: str | None = None
    job: str | None = None
    stage: str | None = None


class ModelFile(Reply):
    name: str
    bytes: int
    sha256: str


class _Files(Reply):
    data: list[ModelFile]


class OutsideFolder(ClientError):
    """A file's name leads out of the folder that it is to be saved in."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the service names a file {name!r}, which leads out of the folder: not saved")


class ModelMethods:
    """What both clients can do with models."""

    @answers
    def get(self, model_id: str) -> Plan[Model]:
        return send(Call("GET", path("models", model_id), Model))

    @answers
    def register(self, *, name: str, folder: str) -> Plan[Model]:
        """A folder on the server, below one of its allowed roots, as a base model. Needs an admin's key."""
        body = {"name": name, "path": folder}
        return send(Call("POST", path("models"), Model, body=body, creates=True))

    @answers
    def delete(self, model_id: str) -> Plan[Deleted]:
        """Raises Conflict while something uses it. A base model needs an admin's key; its folder stays."""
        return send(Call("DELETE", path("models", model_id), Deleted))

    @answers
    def files(self, model_id: str, *, form: Form | None = None) -> Plan[Sequence[ModelFile]]:
        """What `from_pretrained` needs, with sizes and digests. form `adapter`: what peft loads."""
        return _files(model_id, form)

    @answers
    def download(
        self, model_id: str, to: Path, *, form: Form | None = None, on_bytes: OnFile | None = None
    ) -> Plan[Sequence[ModelFile]]:
        """All files into a folder, which is made; those that are there already are not sent again.

        on_bytes: is told of each chunk its file and length, of a file that was there its whole length.
        Raises Damaged where a digest differs.
        """
        files = yield from _files(model_id, form)
        for file in files:
            place = _place(to, file.name)
            if place.is_file() and digest_of(place) == file.sha256:
                if on_bytes is not None:
                    on_bytes(file, file.bytes)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            yield from download(
                _file_path(model_id, file.name),
                place,
                query={"form": form},
                sha256=file.sha256,
                on_bytes=None if on_bytes is None else _told_of(on_bytes, file),
            )
        return files

    # Last in its class: from here on the name hides Python's own.
    @iterates
    def list(self, *, limit: int | None = None) -> Flow[Model]:
        """Base models, and what the owner's jobs have trained, newest first."""
        return listed(path("models"), Model, limit=limit)


class Models(Blocking, ModelMethods):
    """Of a Client."""


class AsyncModels(Awaiting, ModelMethods):
    """Of an AsyncClient."""


def _files(model_id: str, form: Form | None) -> Plan[list[ModelFile]]:
    query = {"form": form}
    return (yield from send(Call("GET", path("models", model_id, "files"), _Files, query=query))).data


def _file_path(model_id: str, name: str) -> str:
    return path("models", model_id, "files", *name.split("/"))


def _place(folder: Path, name: str) -> Path:
    root = folder.resolve()
    place = (root / name).resolve()
    if not place.is_relative_to(root):
        raise OutsideFolder(name)
    return place


def _told_of(on_bytes: OnFile, file: ModelFile) -> Callable[[int], None]:
    return lambda count: on_bytes(file, count)
