"""Jobs made straight from the plan, and runs brought to an end by hand, as a worker would do it."""

from typing import Any

from sqlalchemy import select

from app.jobs.planning import rows_of_plan
from core import queue
from core.advance import advance_job
from core.aftermath import apply_run
from core.database import open_transaction
from core.ids import new_id
from core.tables import BaseModelRow, Dataset, Job, JobInput, Run, StageRow
from core.work_items import ClaimedRun, NewArtifact
from mpo.job_spec import JobSpec
from mpo.keys import dataset_key
from mpo.plan import OUTPUTS, Source, expand, plan_keys, resolve

SHORT: dict[str, Any] = {"type": "mpo", "score": {"folds": 2}, "reward_model": {"on_weak": "warn"}}


def ready_dataset(status: str = "ready") -> str:
    """A dataset, and the base model that jobs start from."""
    dataset_id = new_id("dataset")
    with open_transaction() as tx:
        tx.session.add(
            Dataset(
                id=dataset_id,
                owner="ann",
                name="pairs",
                kind="preference",
                status=status,
                sha256="d" * 64,
                location="uploads/x",
                rows_location="runs/x/1/out/rows.parquet" if status == "ready" else None,
                rows_sha256="e" * 64,
            )
        )
        if tx.session.get(BaseModelRow, "tiny") is None:
            tx.session.add(
                BaseModelRow(
                    name="tiny",
                    kind="policy",
                    path="/models/tiny",
                    sha256="b" * 64,
                    context_tokens=512,
                    has_chat_template=True,
                    owner="ann",
                )
            )
    return dataset_id


def new_job(dataset_id: str, method: dict[str, Any] | None = None, **spec: Any) -> str:
    """A job of owner ann with its stages, advanced once."""
    asked = JobSpec(model="tiny", dataset=dataset_id, method=method or SHORT, **spec)  # type: ignore[arg-type]
    stages = resolve(asked, expand(asked, model="tiny", dataset=dataset_id), 512)
    leaves = {
        Source.dataset(dataset_id): (dataset_key("d" * 64, "preference", 0), "pairs"),
        Source.model("tiny"): ("b" * 64, "model"),
    }
    keys = plan_keys(stages, leaves)
    job_id = new_id("job")
    with open_transaction() as tx:
        tx.session.add(
            Job(
                id=job_id,
                owner="ann",
                name=asked.name,
                method_type="mpo",
                method={"type": "mpo"},
                spec={},
                model="tiny",
                dataset_id=dataset_id,
                seed=asked.seed,
                priority=asked.priority,
                labels={},
                pause_after=asked.pause_after,
            )
        )
        tx.session.flush()
        tx.session.add_all(rows_of_plan(job_id, stages, keys))
        tx.session.add_all(JobInput(job_id=job_id, kind=leaf.kind, name=leaf.name) for leaf in leaves)
        tx.session.flush()
        advance_job(tx, job_id)
    return job_id


def claim_next() -> ClaimedRun | None:
    """Claim as a worker of either slot would."""
    for slot in ("cpu", "gpu"):
        with open_transaction() as tx:
            claimed = queue.claim(tx, slot, "wrk_test")
        if claimed is not None:
            apply_run(claimed.id)
            return claimed
    return None


def finish(claimed: ClaimedRun, **summary: Any) -> None:
    """Publish what the run's kind leaves, and carry it to the jobs."""
    with open_transaction() as tx:
        artifacts = [
            NewArtifact(output, f"runs/{claimed.id}/1/out/{file}", "0" * 64, 1, [], [], {}, "cpu", 1.0, 1)
            for output, file in OUTPUTS[claimed.kind].items()
        ]
        queue.publish(tx, claimed, artifacts, summary)
    apply_run(claimed.id)


def run_to_the_end(stop_before: str = "") -> list[str]:
    """Do all work that can be claimed; returns the stages' names in the order in which they were done."""
    done: list[str] = []
    while (claimed := claim_next()) is not None:
        if claimed.subject_id == stop_before:
            return done
        finish(claimed)
        done.append(claimed.subject_id)
    return done


def job_row(job_id: str) -> Job:
    """The job as it stands."""
    with open_transaction() as tx:
        return tx.session.get_one(Job, job_id)


def stage_rows(job_id: str) -> dict[str, StageRow]:
    """The job's stages by name."""
    with open_transaction() as tx:
        rows = tx.session.scalars(select(StageRow).where(StageRow.job_id == job_id))
        return {row.name: row for row in rows}


def run_row(run_id: str) -> Run:
    """The run as it stands."""
    with open_transaction() as tx:
        return tx.session.get_one(Run, run_id)
