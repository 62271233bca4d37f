"""Models: those registered, and those that jobs have made."""

from typing import Literal

from pydantic import BaseModel, JsonValue

from mpo_client.transport import Call, Transport


class Model(BaseModel):
    id: str
    kind: Literal["policy", "reward_model"] | None = None
    created: int | None = None
    owned_by: str | None = None
    base: str | None = None
    job: str | None = None
    stage: str | None = None


class ModelFile(BaseModel):
    name: str
    bytes: int
    sha256: str


class _Page(BaseModel):
    data: list[Model]
    last_id: str | None = None
    has_more: bool = False


class _Files(BaseModel):
    data: list[ModelFile]


class Models:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, name: str, path: str) -> Model:
        """Makes a folder on the server a base model; needs an admin key. Raises Conflict, NotValid."""
        body: dict[str, JsonValue] = {"name": name, "path": path}
        return self._transport.send(Call("POST", "/v1/models", Model, body=body, creates=True))

    def get(self, model_id: str) -> Model:
        return self._transport.send(Call("GET", f"/v1/models/{model_id}", Model))

    def files(self, model_id: str) -> list[ModelFile]:
        """What `from_pretrained` needs, with sizes and digests."""
        return self._transport.send(Call("GET", f"/v1/models/{model_id}/files", _Files)).data

    # Last in its class: from here on the name hides Python's own.
    def list(self) -> list[Model]:
        """All of them, over as many pages as it takes."""
        found: list[Model] = []
        page = _Page(data=[], has_more=True)
        while page.has_more:
            query = {"limit": 100, "after": page.last_id}
            page = self._transport.send(Call("GET", "/v1/models", _Page, query=query))
            found += page.data
        return found
