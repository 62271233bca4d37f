"""Rows and files that tests begin with."""

import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from app.evaluations.planning import SETTINGS
from core import queue
from core.api_keys import digest, new_secret, visible_prefix
from core.database import Transaction, open_transaction
from core.ids import new_id
from core.tables import ApiKey, Artifact, Dataset, Job, JobInput, Run, StageRow
from core.work_items import NewArtifact
from mpo.config import EvaluateStage


def pairs(count: int) -> list[dict[str, str]]:
    """Preference rows as somebody uploads them."""
    return [
        {"prompt": f"Question {n}?", "chosen": f"A good answer to {n}.", "rejected": f"Bad {n}."}
        for n in range(count)
    ]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    """A JSON Lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def make_key(*scopes: str, owner: str = "admin") -> dict[str, str]:
    """A key's Authorization header."""
    secret = new_secret()
    with open_transaction() as tx:
        tx.session.add(
            ApiKey(
                id=new_id("api_key"),
                owner=owner,
                name="test",
                prefix=visible_prefix(secret),
                secret_sha256=digest(secret),
                scopes=list(scopes),
            )
        )
    return {"Authorization": f"Bearer {secret}"}


def upload(client: TestClient, content: bytes | None = None, name: str = "pairs") -> str:
    """Id of a dataset that has its content, and validates."""
    file = ("pairs.jsonl", content or json_lines(pairs(4)), "application/jsonl")
    response = client.post("/v1/datasets", data={"name": name, "kind": "preference"}, files={"file": file})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def validate(dataset_id: str, scratch: Path) -> None:
    """What a worker does with an uploaded dataset, in this process."""
    from core.aftermath import apply_run
    from core.storage import storage
    from mpo.dataset_files import validate_file
    from mpo.errors import InvalidDataset

    with open_transaction() as tx:
        claimed = queue.claim(tx, "cpu", "test")
    assert claimed is not None
    assert claimed.subject_id == dataset_id
    source = storage().fetch(claimed.inputs["content"][0]["location"], scratch / "source")
    folder = scratch / claimed.id
    folder.mkdir()
    config = claimed.config
    try:
        report = validate_file(
            source, folder / "rows.parquet", max_bad_rows=config["max_bad_rows"], kind=config["kind"]
        )
    except InvalidDataset as error:
        refused: Any = error.facts["report"]
        failure = {"code": error.code, "message": error.detail, "report": refused.to_json()}
        with open_transaction() as tx:
            queue.fail(tx, claimed, failure)
    else:
        location = f"runs/{claimed.id}/{claimed.fence}"
        stored = storage().put_folder(location, folder)[0]
        artifact = new_artifact("rows", f"{location}/rows.parquet", stored.bytes, stored.sha256)
        with open_transaction() as tx:
            queue.publish(tx, claimed, [artifact], report.to_json())
    apply_run(claimed.id)


def new_artifact(output: str, location: str, size: int = 0, sha256: str = "0" * 64) -> NewArtifact:
    """An output to publish."""
    return NewArtifact(
        output=output,
        location=location,
        sha256=sha256,
        bytes=size,
        files=[],
        inputs=[],
        versions={},
        hardware="cpu",
        wall_seconds=1.0,
        peak_memory_bytes=1,
    )


def make_job(tx: Transaction, dataset_id: str, *, owner: str = "admin", **values: Any) -> Job:
    """A job without stages that reads its dataset and its model."""
    job = Job(
        **{
            "id": new_id("job"),
            "owner": owner,
            "name": "job",
            "method_type": "mpo",
            "model": "tiny",
            "dataset_id": dataset_id,
            "seed": 0,
            "priority": 0,
            "pause_after": [],
            **values,
        }
    )
    tx.session.add(job)
    tx.session.flush()
    for kind, name in (("dataset", job.dataset_id), ("model", job.model)):
        tx.session.add(JobInput(job_id=job.id, kind=kind, name=name))
    tx.session.flush()
    return job


def make_dataset(tx: Transaction, *, owner: str = "admin", **values: Any) -> Dataset:
    """A dataset that awaits its content."""
    dataset = Dataset(
        **{"id": new_id("dataset"), "owner": owner, "name": "d", "kind": "preference", **values}
    )
    tx.session.add(dataset)
    tx.session.flush()
    return dataset


def evaluation_request(dataset_id: str) -> dict[str, Any]:
    """What an evaluation's row keeps of its request."""
    settings = EvaluateStage(max_new_tokens=8, max_prompt_tokens=8, max_response_tokens=8)
    kept = settings.model_dump(mode="json", include=set(SETTINGS))
    return {"judge": "judge", "reward_model": None, "sft": None, "dpo": None, "seed": 0, **kept} | {
        "dataset": dataset_id
    }


def make_trained_model(
    tx: Transaction, job: Job, folder: str, files: list[dict[str, Any]], stage: str = "sft"
) -> str:
    """Name of a model that a job's stage has made; its files lie in the store's folder."""
    run = Run(id=new_id("run"), owner=job.owner, kind=stage, slot="gpu", subject_id=stage, state="succeeded")
    tx.session.add(run)
    tx.session.flush()
    artifact = Artifact(
        **vars(new_artifact("model", folder)),
        id=new_id("artifact"),
        owner=job.owner,
        run_id=run.id,
        job_id=job.id,
        key=f"key-{job.id}-{stage}",
        kind=stage,
        config={},
    )
    artifact.files = files
    tx.session.add(artifact)
    tx.session.add(
        StageRow(
            job_id=job.id,
            name=stage,
            position=0,
            rank=0,
            kind=stage,
            slot="gpu",
            inputs={},
            seed=0,
            key=artifact.key,
            base=job.model,
            status="succeeded",
            run_id=run.id,
            artifacts={"model": artifact.id},
            finished_at=tx.session.scalar(_now()),
        )
    )
    tx.session.flush()
    return f"{job.id}:{stage}"


def _now() -> Any:
    from sqlalchemy import func, select

    return select(func.clock_timestamp())
