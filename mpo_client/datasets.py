"""Datasets: created, filled with a file, validated by the service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, JsonValue

from mpo_client.transport import Call, Transport
from mpo_client.waiting import wait_until

Kind = Literal["preference", "prompts", "text"]
_CHUNK_BYTES = 1 << 20
_DONE = frozenset({"ready", "invalid"})


class DatasetError(BaseModel):
    code: str
    message: str


class Dataset(BaseModel):
    id: str
    name: str
    kind: Kind
    status: Literal["awaiting_content", "validating", "ready", "invalid"]
    rows: int | None = None
    bad_rows: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    error: DatasetError | None = None


class Datasets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, name: str, kind: Kind = "preference", max_bad_rows: int = 0) -> Dataset:
        """A dataset that awaits its content."""
        return self._transport.send(_create(name, kind, max_bad_rows))

    def put_content(self, dataset_id: str, path: Path) -> Dataset:
        """The file's bytes as they are (.jsonl, .json, .csv, .parquet, each also gzipped), streamed."""
        return self._transport.send(_put_content(dataset_id, path))

    def upload(self, path: Path, *, name: str | None = None, kind: Kind = "preference") -> Dataset:
        """`create` and `put_content` in one."""
        return self.put_content(self.create(name=name or path.name, kind=kind).id, path)

    def get(self, dataset_id: str, *, wait_seconds: float = 0.0) -> Dataset:
        """With `wait_seconds` (at most 60) the answer comes once the dataset changes."""
        return self._transport.send(_get(dataset_id, wait_seconds))

    def wait(self, dataset_id: str, *, deadline_seconds: float = 600.0) -> Dataset:
        """Until the dataset is ready or invalid. Raises DeadlinePassed."""
        return wait_until(
            self._transport,
            lambda held: _get(dataset_id, held),
            done=lambda dataset: dataset.status in _DONE,
            what=f"dataset {dataset_id}",
            deadline_seconds=deadline_seconds,
        )


def _create(name: str, kind: Kind, max_bad_rows: int) -> Call[Dataset]:
    body: dict[str, JsonValue] = {"name": name, "kind": kind, "max_bad_rows": max_bad_rows}
    return Call("POST", "/v1/datasets", Dataset, body=body, creates=True)


def _put_content(dataset_id: str, path: Path) -> Call[Dataset]:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
    return Call("PUT", f"/v1/datasets/{dataset_id}/content", Dataset, content=_chunks(path), headers=headers)


def _get(dataset_id: str, wait_seconds: float) -> Call[Dataset]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", f"/v1/datasets/{dataset_id}", Dataset, query=query, held_seconds=wait_seconds)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
