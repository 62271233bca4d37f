"""Rows that a job needs, made by the product's own functions wherever there is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from core import queue
from core.aftermath import apply_run
from core.database import open_session, open_transaction
from core.ids import new_id
from core.queue import ClaimedRun, NewArtifact
from core.storage import StoredFile, files_digest, storage
from core.tables import BaseModelRow, Dataset, Run, StageRow
from mpo.plan import OUTPUTS
from mpo.records import PreferencePair, write_rows

OWNER = "admin"
SLOTS = ("cpu", "gpu")


def pairs(count: int = 8) -> list[PreferencePair]:
    """Pairs whose texts tell them apart."""
    return [PreferencePair(str(i), f"prompt {i}", f"chosen {i}", f"rejected {i}") for i in range(count)]


def make_model(name: str = "tiny", **changes: Any) -> str:
    """A base model's row; no test here reads its files."""
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
    """Publish what a stage leaves, as a worker does: files by output name."""
    prefix = f"runs/{claimed.id}/{claimed.fence}/out"
    artifacts = []
    for output in OUTPUTS[claimed.kind]:
        location = f"{prefix}/{OUTPUTS[claimed.kind][output]}"
        upload = storage().upload(location)
        upload.write(files.get(output, output.encode()))
        stored = upload.commit()
        file = StoredFile(Path(location).name, stored.bytes, stored.sha256)
        artifacts.append(
            NewArtifact(
                output=output,
                location=location,
                sha256=files_digest([file]),
                bytes=file.bytes,
                files=[vars(file)],
                inputs=[
                    {"name": role, "kind": source["kind"], "id": source["id"], "sha256": source["sha256"]}
                    for role, sources in claimed.inputs.items()
                    for source in sources
                ],
                versions={"mpo": "0.1.0"},
                hardware="cpu",
                wall_seconds=1.0,
                peak_memory_bytes=1,
            )
        )
    with open_transaction() as tx:
        queue.publish(tx, claimed, artifacts, summary or {})
    apply_run(claimed.id)


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
