"""Datasets: created, filled with a file, validated by the service."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Deleted, Flow, Plan, Reply, path, send
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed
from mpo_client.waiting import wait_until

Kind = Literal["preference", "prompts", "text"]
OnProgress = Callable[[int, int], None]
_CHUNK_BYTES = 1 << 20
_DONE = frozenset({"ready", "invalid"})


class DatasetError(Reply):
    code: str
    message: str


class Dataset(Reply):
    id: str
    name: str
    kind: Kind
    status: Literal["awaiting_content", "validating", "ready", "invalid"]
    max_bad_rows: int = 0
    format: str | None = None
    rows: int | None = None
    bad_rows: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    created_at: int | None = None
    error: DatasetError | None = None


class DatasetRow(Reply):
    """A canonical row: `prompt`, `chosen`, `rejected`; or `prompt`; or `text`, by the dataset's kind."""

    id: str
    prompt: JsonValue = None
    chosen: JsonValue = None
    rejected: JsonValue = None
    text: str | None = None


class BadRow(Reply):
    """A row that was refused; lines count from 1."""

    line: int
    column: int | None = None
    message: str


class DatasetReport(Reply):
    """What validation found; of the refused rows the first 100. Lengths are quantiles, in characters."""

    dataset: str
    rows: int
    bad_rows: int
    bad: list[BadRow] = []
    duplicates: int | None = None
    conflicting: int | None = None
    identical: int | None = None
    lengths: dict[str, dict[str, float]] = {}
    length_baseline_accuracy: float | None = None
    annotators: dict[str, JsonValue] = {}
    tokens: dict[str, dict[str, float]] | None = None
    sampled_rows: int | None = None
    shared_prompts: int | None = None


class DatasetMethods:
    """What both clients can do with datasets."""

    @answers
    def create(self, *, name: str, kind: Kind = "preference", max_bad_rows: int = 0) -> Plan[Dataset]:
        """A dataset that awaits its content."""
        return send(_create(name, kind, max_bad_rows))

    @answers
    def put_content(
        self, dataset_id: str, file: Path, *, on_progress: OnProgress | None = None
    ) -> Plan[Dataset]:
        """The file's bytes as they are (.jsonl, .json, .csv, .parquet, each also gzipped), streamed.

        on_progress: is told the bytes sent and those in all; a try that is made anew begins at 0 again.
        """
        return send(_put_content(dataset_id, file, file.stat().st_size, on_progress))

    @answers
    def upload(
        self,
        file: Path,
        *,
        name: str | None = None,
        kind: Kind = "preference",
        max_bad_rows: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Plan[Dataset]:
        """`create` and `put_content` in one. Where there is no such file: OSError, and nothing is made."""
        with file.open("rb"):
            size = file.stat().st_size
        made = yield from send(_create(name or file.name, kind, max_bad_rows))
        return (yield from send(_put_content(made.id, file, size, on_progress)))

    @answers
    def get(self, dataset_id: str, *, wait_seconds: float = 0.0) -> Plan[Dataset]:
        """With `wait_seconds` (at most 60) the answer comes once the dataset changes."""
        return send(_get(dataset_id, wait_seconds))

    @answers
    def wait(
        self,
        dataset_id: str,
        *,
        deadline_seconds: float = 600.0,
        on_change: Callable[[Dataset], None] | None = None,
    ) -> Plan[Dataset]:
        """Until the dataset is ready or invalid. Raises DeadlinePassed."""
        return wait_until(
            lambda held: _get(dataset_id, held),
            done=lambda dataset: dataset.status in _DONE,
            what=f"dataset {dataset_id}",
            deadline_seconds=deadline_seconds,
            on_change=on_change,
        )

    @answers
    def delete(self, dataset_id: str) -> Plan[Deleted]:
        """Raises Conflict while a job that has not finished uses it."""
        return send(Call("DELETE", path("datasets", dataset_id), Deleted))

    @answers
    def report(
        self, dataset_id: str, *, model: str | None = None, against: str | None = None
    ) -> Plan[DatasetReport]:
        """What validation found. model: lengths in its tokens too; against: prompts shared with it."""
        query = {"model": model, "against": against}
        return send(Call("GET", path("datasets", dataset_id, "report"), DatasetReport, query=query))

    @iterates
    def rows(self, dataset_id: str, *, limit: int | None = None) -> Flow[DatasetRow]:
        """The canonical rows, in the file's order."""
        return listed(path("datasets", dataset_id, "rows"), DatasetRow, limit=limit)

    # Last in its class: from here on the name hides Python's own.
    @iterates
    def list(self, *, limit: int | None = None) -> Flow[Dataset]:
        """Newest first."""
        return listed(path("datasets"), Dataset, limit=limit)


class Datasets(Blocking, DatasetMethods):
    """Of a Client."""


class AsyncDatasets(Awaiting, DatasetMethods):
    """Of an AsyncClient."""


def _create(name: str, kind: Kind, max_bad_rows: int) -> Call[Dataset]:
    body: dict[str, JsonValue] = {"name": name, "kind": kind, "max_bad_rows": max_bad_rows}
    return Call("POST", path("datasets"), Dataset, body=body, creates=True)


def _put_content(dataset_id: str, file: Path, size: int, on_progress: OnProgress | None) -> Call[Dataset]:
    return Call(
        "PUT",
        path("datasets", dataset_id, "content"),
        Dataset,
        content=lambda: _chunks(file, size, on_progress),
        headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
    )


def _get(dataset_id: str, wait_seconds: float) -> Call[Dataset]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", path("datasets", dataset_id), Dataset, query=query, held_seconds=wait_seconds)


def _chunks(file: Path, size: int, on_progress: OnProgress | None) -> Iterator[bytes]:
    sent = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            if on_progress is not None:
                on_progress(sent, size)
