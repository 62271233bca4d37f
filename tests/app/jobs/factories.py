"""Rows that a job needs, made by the product's own functions wherever there is one."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select

from core import queue
from core.aftermath import apply_run
from core.database import open_session, open_transaction
from core.ids import new_id
from core.storage import storage
from core.stored_files import files_digest
from core.tables import BaseModelRow, Dataset, Run, StageRow
from core.work_items import ClaimedRun, NewArtifact
from mpo.plan import OUTPUTS
from mpo.records import PreferencePair, write_rows

OWNER = "admin"
SLOTS = ("cpu", "gpu")


def pairs(count: int = 8) -> list[PreferencePair]:
    """Pairs whose texts tell them apart."""
    return [PreferencePair(str(i), f"prompt {i}", f"chosen {i}", f"rejected {i}") for i in range(count)]


def make_model(name: str = "tiny", **changes: Any) -> str:
    """A base model's row; of its files there are those alone that a test writes below `path`."""
    values = {
        "name": name,
        "kind": "policy",
        "path": f"/models/{name}",
        "sha256": "1" * 64,
        "context_tokens": 256,
        "has_chat_template": False,
        "owner": OWNER,
    }
    with open_transaction() as tx:
        tx.session.add(BaseModelRow(**(values | changes)))
    return name


def make_dataset(folder: Path, rows: list[PreferencePair] | None = None, **changes: Any) -> str:
    """A ready dataset, its canonical rows in the store."""
    dataset_id = new_id("dataset")
    file = folder / f"{dataset_id}.parquet"
    count = write_rows(file, pairs() if rows is None else rows)
    location = f"datasets/{dataset_id}/rows.parquet"
    upload = storage().upload(location)
    upload.write(file.read_bytes())
    stored = upload.commit()
    values: dict[str, Any] = {
        "id": dataset_id,
        "owner": OWNER,
        "name": "pairs",
        "kind": "preference",
        "status": "ready",
        "max_bad_rows": 0,
        "rows": count,
        "sha256": stored.sha256,
        "rows_location": location,
        "rows_sha256": stored.sha256,
    }
    with open_transaction() as tx:
        tx.session.add(Dataset(**(values | changes)))
    return dataset_id


def claim(slot: str) -> ClaimedRun | None:
    """Claim a run as a worker does."""
    with open_transaction() as tx:
        claimed = queue.claim(tx, slot, "wrk_test")
    if claimed is not None:
        apply_run(claimed.id)
    return claimed


def publish(
    claimed: ClaimedRun, files: Mapping[str, bytes], summary: Mapping[str, Any] | None = None
) -> None:
    """Publish what a stage leaves, as a worker does: files by output name, a word where none is given."""
    with TemporaryDirectory() as folder:
        for output, name in OUTPUTS[claimed.kind].items():
            (Path(folder) / name).write_bytes(files.get(output, output.encode()))
        (Path(folder) / "summary.json").write_text(json.dumps(summary or {}))
        publish_folder(claimed, Path(folder))


def publish_folder(claimed: ClaimedRun, folder: Path) -> None:
    """Publish a folder that a stage has filled."""
    location = f"runs/{claimed.id}/{claimed.fence}/out"
    stored = storage().put_folder(location, folder)
    artifacts = []
    for output, name in OUTPUTS[claimed.kind].items():
        files = [file for file in stored if file.name == name or file.name.startswith(f"{name}/")]
        artifacts.append(
            NewArtifact(
                output=output,
                location=f"{location}/{name}",
                sha256=files_digest(files),
                bytes=sum(file.bytes for file in files),
                files=[vars(file) for file in files],
                inputs=_lineage(claimed),
                versions={"mpo": "0.1.0"},
                hardware="cpu",
                wall_seconds=1.0,
                peak_memory_bytes=1,
            )
        )
    with open_transaction() as tx:
        queue.publish(tx, claimed, artifacts, json.loads((folder / "summary.json").read_text()))
    apply_run(claimed.id)


def _lineage(claimed: ClaimedRun) -> list[dict[str, Any]]:
    return [
        {"name": role, "kind": source["kind"], "id": source["id"], "sha256": source["sha256"]}
        for role, sources in claimed.inputs.items()
        for source in sources
    ]


def work_until(stage: str | None = None) -> ClaimedRun | None:
    """Perform runs until one of this stage is claimed (it is returned, unpublished) or none is left."""
    while True:
        claimed = next((c for slot in SLOTS if (c := claim(slot)) is not None), None)
        if claimed is None or claimed.subject_id == stage:
            return claimed
        publish(claimed, {})


def stage_row(job_id: str, name: str) -> StageRow:
    """A stage as it is now."""
    with open_session() as session:
        return session.get_one(StageRow, (job_id, name))


def runs_of(job_id: str) -> list[Run]:
    """All runs that a job has made."""
    with open_session() as session:
        return list(session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.id)))
